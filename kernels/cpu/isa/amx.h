// AVX-512 with AMX: blocked matmuls in tiles, all else as there.
#pragma once

#define HETRUN_TILES 1

#include "avx512.h"
