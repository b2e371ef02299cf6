// SPDX-License-Identifier: Apache-2.0
//
// Weight matrices in memory: blocks of whole rows, each of them plain bf16, or bf12
// (kernels/bf12.h), or a bit-plane frame as it lies in a pack file (codec/bitplane.h). A product
// takes any of them.
#ifndef Q3_RUNTIME_MATRIX_H
#define Q3_RUNTIME_MATRIX_H

#include "codec/codec.h"
#include "kernels/kernels.h"

#include "base/error.h"

typedef enum q3_block_kind { Q3_BLOCK_PLAIN, Q3_BLOCK_BF12, Q3_BLOCK_FRAME } q3_block_kind;

typedef struct q3_block {
    const void *data; // bf16 row-major; as q3_bf12_at has it; a stored frame
    uint32_t bytes;   // of it that a product reads
    q3_block_kind kind;
    unsigned lowest; // exponent of bf12's window
} q3_block;

// y = W x: y has `rows` numbers, x has `columns`.
typedef struct q3_matrix {
    const q3_block *blocks;
    uint32_t rows, columns;
    uint32_t block_rows; // rows in each block but the last
    uint64_t bytes;      // of all blocks that a product reads
} q3_matrix;

// Bytes of a block's rows as plain bf16 that a product can take: what a worker's scratch for
// q3_matrix_multiply has.
enum { Q3_BLOCK_BYTES_MAX = 1 << 20 };

static inline uint32_t q3_matrix_blocks(const q3_matrix *matrix)
{
    return (matrix->rows - 1) / matrix->block_rows + 1;
}

static inline uint32_t q3_block_rows(const q3_matrix *matrix, uint32_t block)
{
    const uint32_t rest = matrix->rows - block * matrix->block_rows;
    return rest < matrix->block_rows ? rest : matrix->block_rows;
}

// Can a frame of a codec be a block of a matrix with so many columns as it is stored?
bool q3_block_takes(q3_codec codec, uint64_t raw_bytes, uint32_t columns);

// Can rows with so many columns be a bf12 block? And the block that they become, in q3_bf12_bytes
// of memory at a multiple of 8; false if it has no room for their exceptions, and then nothing is
// written.
bool q3_block_shortens(uint64_t raw_bytes, uint32_t columns);
bool q3_block_shorten(const q3_bf12_kernels *kernels, const uint16_t *rows, size_t weights,
                      void *memory, q3_block *block);

// Checks the header and tables of a block that is a frame (Q3_MALFORMED).
bool q3_block_check(const q3_block *block, uint64_t raw_bytes, q3_error *err);

// The rows of one block for several vectors: y[v][r] becomes row r of the matrix times vector v.
// `products` are one of the kernels' two, `panels` the vectors as they arrange them, `next` what
// the thread goes through afterwards. `scratch` has Q3_BLOCK_BYTES_MAX bytes at a multiple of 64.
// False when a frame's streams do not fit its groups (its checksum was right, so it was made to
// harm): y holds nothing of use then.
bool q3_matrix_multiply(const q3_matrix *matrix, uint32_t block, const q3_kernels *kernels,
                        const q3_products *products, const void *const *panels, size_t vectors,
                        float *const *y, q3_next next, void *scratch, q3_coder *coder);

// Can a gated pair be multiplied as one? That is up to the products, and to the form and the height
// of all blocks.
bool q3_matrix_gates(const q3_products *products, const q3_matrix *gate, const q3_matrix *up);

// Then, of one block's rows of both, silu(gate x) * (up x), as columns of the panels of the product
// behind them (q3_products.multiply_gated).
void q3_matrix_multiply_gated(const q3_matrix *gate, const q3_matrix *up, uint32_t block,
                              const q3_products *products, const void *const *panels,
                              size_t vectors, void *const *inner, const q3_next next[2]);

// A block as it lies in memory: what is next when its product is next.
static inline q3_next q3_matrix_next(const q3_matrix *matrix, uint32_t block)
{
    const q3_block *b = &matrix->blocks[block];
    return (q3_next){b->data, b->bytes};
}

#endif
