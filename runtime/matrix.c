// SPDX-License-Identifier: Apache-2.0
#include "matrix.h"

#include "codec/bitplane.h"

bool q3_block_takes(q3_codec codec, uint64_t raw_bytes, uint32_t columns)
{
    const uint64_t row_bytes = 2 * (uint64_t)columns;
    return (codec == Q3_CODEC_RAW || codec == Q3_CODEC_BITPLANE) && raw_bytes % row_bytes == 0 &&
           raw_bytes <= Q3_BLOCK_BYTES_MAX;
}

bool q3_block_shortens(uint64_t raw_bytes, uint32_t columns)
{
    return columns % Q3_BF12_GROUP == 0 && raw_bytes % (2 * (uint64_t)columns) == 0 &&
           raw_bytes <= Q3_BLOCK_BYTES_MAX;
}

bool q3_block_shorten(const q3_bf12_kernels *kernels, const uint16_t *rows, size_t weights,
                      void *memory, q3_block *block)
{
    const unsigned lowest = q3_bf12_window(rows, weights);
    if (kernels->outside(rows, weights, lowest) > q3_bf12_room(weights))
        return false;
    kernels->pack(rows, weights, lowest, memory);
    *block = (q3_block){
        .data = memory,
        .bytes = (uint32_t)q3_bf12_groups_bytes(weights),
        .kind = Q3_BLOCK_BF12,
        .lowest = lowest,
    };
    return true;
}

bool q3_block_check(const q3_block *block, uint64_t raw_bytes, q3_error *err)
{
    q3_bitplane_view view;
    return block->kind != Q3_BLOCK_FRAME ||
           q3_bitplane_parse(block->data, block->bytes, raw_bytes, &view, err);
}

// Can the frame be multiplied without being decoded to memory?
static bool fuses(const q3_products *products, size_t rows, size_t columns, size_t vectors)
{
    return products->multiply_frame && vectors <= products->fused_vectors &&
           columns % Q3_BITPLANE_GROUP == 0 &&
           rows * columns >= Q3_BITPLANE_RUN * Q3_BITPLANE_GROUP;
}

bool q3_matrix_multiply(const q3_matrix *matrix, uint32_t block, const q3_kernels *kernels,
                        const q3_products *products, const void *const *panels, size_t vectors,
                        float *const *y, q3_next next, void *scratch, q3_coder *coder)
{
    const q3_block *stored = &matrix->blocks[block];
    const size_t first = (size_t)block * matrix->block_rows;
    const size_t rows = q3_block_rows(matrix, block), columns = matrix->columns;
    const void *weights = stored->data;
    if (stored->kind == Q3_BLOCK_BF12) {
        const q3_bf12 shorter = q3_bf12_at(stored->data, rows * columns, stored->lowest);
        if (vectors <= products->bf12_vectors) {
            products->multiply_bf12(&shorter, rows, columns, panels, vectors, y, first, next);
            return true;
        }
        kernels->bf12->unpack(&shorter, rows * columns, scratch);
        weights = scratch;
    }
    if (stored->kind == Q3_BLOCK_FRAME) {
        const size_t raw_bytes = 2 * rows * columns;
        q3_error err;
        if (fuses(products, rows, columns, vectors)) {
            q3_bitplane_view view;
            return q3_bitplane_parse(weights, stored->bytes, raw_bytes, &view, &err) &&
                   products->multiply_frame(&view, rows, columns, panels, vectors, y, first);
        }
        if (!q3_codec_decode(coder, Q3_CODEC_BITPLANE, weights, stored->bytes, scratch, raw_bytes,
                             &err))
            return false;
        weights = scratch;
    }
    products->multiply(weights, rows, columns, panels, vectors, y, first, next);
    return true;
}

bool q3_matrix_gates(const q3_products *products, const q3_matrix *gate, const q3_matrix *up)
{
    if (!products->multiply_gated || gate->block_rows != up->block_rows ||
        gate->rows % products->gated_rows || gate->block_rows % products->gated_rows)
        return false;
    bool can = true;
    for (uint32_t b = 0; can && b < q3_matrix_blocks(gate); b++)
        can = gate->blocks[b].kind == up->blocks[b].kind && up->blocks[b].kind != Q3_BLOCK_FRAME;
    return can;
}

static q3_rows rows_of(const q3_matrix *matrix, uint32_t block)
{
    const q3_block *stored = &matrix->blocks[block];
    const size_t weights = (size_t)q3_block_rows(matrix, block) * matrix->columns;
    return stored->kind == Q3_BLOCK_PLAIN
               ? (q3_rows){.plain = stored->data}
               : (q3_rows){.bf12 = q3_bf12_at(stored->data, weights, stored->lowest)};
}

void q3_matrix_multiply_gated(const q3_matrix *gate, const q3_matrix *up, uint32_t block,
                              const q3_products *products, const void *const *panels,
                              size_t vectors, void *const *inner, const q3_next next[2])
{
    const q3_rows a = rows_of(gate, block), b = rows_of(up, block);
    products->multiply_gated(&a, &b, q3_block_rows(gate, block), gate->columns, panels, vectors,
                             inner, (size_t)block * gate->block_rows, next);
}
