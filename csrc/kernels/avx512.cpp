#define CIRCLE_LEVEL avx512
#define CIRCLE_VECTOR_BYTES 64
#include "kernels/level.h"
