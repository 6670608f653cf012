// AVX-512 with AMX: blocked matmuls in tiles, all else as there.
#pragma once

#include "avx512.h"

#define HETRUN_TILES 1
