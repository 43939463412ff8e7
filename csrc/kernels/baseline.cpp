#define CIRCLE_LEVEL baseline
#define CIRCLE_VECTOR_BYTES 16
#include "kernels/level.h"
