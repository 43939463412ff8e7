"""Tiny data sets in the published layouts, drawn: a class has its own colours and place."""

from __future__ import annotations

import io
import pickle
import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy.io import savemat

SIDE = 32
MAGIC = 0xCED7230A


def picture(label: int, number: int) -> Image.Image:
    """Always the same for the same label and number."""
    generator = random.Random(f"{label}/{number}")
    own = random.Random(f"class {label}")
    drawn = Image.new("RGB", (SIDE, SIDE), tuple(own.randrange(256) for _ in range(3)))
    left, top = (own.randrange(16) + generator.randrange(4) for _ in range(2))
    colour = tuple(own.randrange(256) for _ in range(3))
    ImageDraw.Draw(drawn).ellipse((left, top, left + 12, top + 12), fill=colour)
    return drawn


def encoded(label: int, number: int) -> bytes:
    file = io.BytesIO()
    picture(label, number).save(file, "JPEG")
    return file.getvalue()


def write(path: Path, label: int, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(label, number))


def write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{each}\n" for each in lines), "utf-8")


def cub(root: Path) -> None:
    images, labels = [], []
    for label in (1, 2, 99, 100, 101, 102, 200):
        for number in range(6):
            name = f"{label:03}.Bird/Bird_{number}.jpg"
            write(root / "CUB_200_2011" / "images" / name, label, number)
            images.append(f"{len(images) + 1} {name}")
            labels.append(f"{len(labels) + 1} {label}")
    write_lines(root / "CUB_200_2011" / "images.txt", images)
    write_lines(root / "CUB_200_2011" / "image_class_labels.txt", labels)


def cars(root: Path) -> None:
    records = []
    for label in (1, 2, 98, 99, 196):
        for number in range(6):
            name = f"car_ims/{len(records) + 1:06}.jpg"
            write(root / name, label, number)
            records.append((name, 1, 2, 3, 4, label, number % 2))
    fields = ("relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test")
    annotations = np.array(records, [(name, "O") for name in fields])
    savemat(root / "cars_annos.mat", {"annotations": annotations[None]})


def cars_in_folders(root: Path) -> None:
    for label in range(1, 101):
        for part in ("train", "test") if label in (1, 98, 99, 100) else ("train",):
            for number in range(2):
                write(root / part / f"Car {label:03} Coupe" / f"{number}.jpg", label, number)


def sop(root: Path) -> None:
    for part, labels in (("train", (1, 2, 5)), ("test", (11319, 11320))):
        lines = ["image_id class_id super_class_id path"]
        for label in labels:
            for number in range(6):
                name = f"chair_final/{label}_{number}.JPG"
                write(root / name, label, number)
                lines.append(f"{len(lines)} {label} 1 {name}")
        write_lines(root / f"Ebay_{part}.txt", lines)


def market(root: Path) -> None:
    def add(part: str, person: int, camera: int, number: int) -> None:
        name = f"{person:04}_c{camera}s1_{number:06}_00.jpg" if person >= 0 else ""
        name = name or f"-1_c{camera}s1_{number:06}_00.jpg"
        write(root / part / name, person, number)

    for person in (2, 7, 11):
        for number in range(6):
            add("bounding_box_train", person, 1 + number % 3, number)
    for person in (1, 3, 4):
        add("query", person, 1, 0)
        for number in range(1, 4):
            add("bounding_box_test", person, number, number)
    for number in range(2):
        add("bounding_box_test", 0, 2, number)
        add("bounding_box_test", -1, 3, number)
    (root / "query" / "Thumbs.db").write_bytes(b"no picture")


def msmt17(root: Path) -> None:
    parts = {
        "list_train.txt": ("train", (0, 1), range(5)),
        "list_val.txt": ("train", (0, 1), range(5, 7)),
        "list_query.txt": ("test", (0, 1, 2), range(1)),
        "list_gallery.txt": ("test", (0, 1, 2), range(1, 4)),
    }
    for name, (folder, people, numbers) in parts.items():
        lines = []
        for person in people:
            for number in numbers:
                camera = 1 + number % 15
                path = f"{person:04}/{person:04}_{number:03}_{camera:02}_0303morning_0015_0.jpg"
                write(root / folder / path, person + 100 * (folder == "test"), number)
                lines.append(f"{path} {person}")
        write_lines(root / name, lines)


def pair_file(path: Path, **options: int) -> None:
    """Pairs of the same and of different persons, in turns."""
    pictures, same = [], []
    for pair in range(20):
        pictures += [encoded(50 + pair, 0), encoded(50 + pair + pair % 2, 1)]
        same.append(pair % 2 == 0)
    path.write_bytes(pickle.dumps((pictures, same), **options))


def ijbc(root: Path) -> None:
    """Two templates for each of three persons, one of them with two frames and a picture."""
    faces, landmarks = [], []
    for template in range(6):
        for number in range(1 if template < 3 else 3):
            name = f"{len(faces) + 1}.jpg"
            write(root / "IJBC" / "loose_crop" / name, 80 + template % 3, number)
            faces.append(f"{name} {10 + template} {100 + template + (number == 2)}")
            points = "9.0 14.0 22.0 14.0 16.0 20.0 11.0 26.0 20.0 26.0"
            landmarks.append(f"{name} {points} 0.999")
    pairs = [
        f"{10 + first} {13 + second} {int(first == second)}"
        for first in range(3)
        for second in range(3)
    ]
    write_lines(root / "IJBC" / "meta" / "ijbc_face_tid_mid.txt", faces)
    write_lines(root / "IJBC" / "meta" / "ijbc_name_5pts_score.txt", landmarks)
    write_lines(root / "IJBC" / "meta" / "ijbc_template_pair_label.txt", pairs)


def faces(root: Path) -> None:
    for label in range(4):
        for number in range(6):
            write(root / "train" / f"person{label}" / f"{number}.jpg", label, number)
    pair_file(root / "lfw.bin", protocol=2)
    pair_file(root / "cfp_fp.bin", protocol=4)
    ijbc(root)


def recordio(content: bytes) -> bytes:
    """A record as MXNet writes it: cut where the content has the magic number at a whole word."""
    magic = struct.pack("<I", MAGIC)
    cuts = [at for at in range(0, len(content) - 3, 4) if content[at : at + 4] == magic]
    parts = [
        content[start:end]
        for start, end in zip([0, *(at + 4 for at in cuts)], [*cuts, len(content)], strict=True)
    ]
    kinds = [0] if len(parts) == 1 else [1, *[2] * (len(parts) - 2), 3]
    written = b""
    for kind, part in zip(kinds, parts, strict=True):
        written += struct.pack("<II", MAGIC, kind << 29 | len(part)) + part
        written += bytes(-len(part) % 4)
    return written


def faces_in_records(root: Path, extra: bytes = b"") -> None:
    """The same faces in ``train.rec``; ``extra`` goes behind the first picture."""
    count = 4 * 6
    contents = {0: struct.pack("<IfQQ2f", 2, 0, 0, 0, count + 1, count + 5)}
    for key in range(1, count + 1):
        label, number = divmod(key - 1, 6)
        picture_bytes = encoded(label, number) + (extra if key == 1 else b"")
        contents[key] = struct.pack("<IfQQ", 0, label, key, 0) + picture_bytes
    for label in range(4):  # which pictures a person has
        first = 1 + 6 * label
        contents[count + 1 + label] = struct.pack("<IfQQ2f", 2, 0, 0, 0, first, first + 6)
    file, index = b"", []
    for key, content in contents.items():
        index.append(f"{key}\t{len(file)}")
        file += recordio(content)
    (root / "train.rec").write_bytes(file)
    write_lines(root / "train.idx", index)


DRAWN: dict[str, Callable[[Path], None]] = {
    "cub": cub,
    "cars": cars,
    "sop": sop,
    "market": market,
    "msmt17": msmt17,
    "faces_circle": faces,
    "faces_am_softmax": faces,
    "faces_arcface": faces,
}

# By configuration: what makes a run of it take seconds.
_SMALL = (
    *("model.backbone=small", "model.pretrained=false", "model.embedding=64"),
    *("data.height=32", "data.width=32", "training.steps=4", "training.warmup=0"),
    *("training.learning_rate=0.01", "run.workers=0", "run.device=cpu", "evaluation.batch=7"),
)
_BATCH = {
    "cub": (8, 4),
    "cars": (6, 3),
    "sop": (9, 3),
    "market": (8, 4),
    "msmt17": (8, 4),
}


def changes(config: str, *more: str) -> list[str]:
    """Options of the command line for a small run of a configuration."""
    batch, per_class = _BATCH.get(config, (8, 0))
    every = (*_SMALL, f"training.batch={batch}", f"training.per_class={per_class}", *more)
    return [word for each in every for word in ("--set", each)]
