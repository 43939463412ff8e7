#define CIRCLE_LEVEL avx2
#define CIRCLE_VECTOR_BYTES 32
#include "kernels/level.h"
