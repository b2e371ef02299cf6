// SPDX-License-Identifier: Apache-2.0
//
// The description of one tensor, made once from a shard's header and the model's inventory and
// carried unchanged to the kernel that multiplies with it: what it is called, what it is for, of
// which type and shape. And the rule which pack file it goes to.
#ifndef Q3_MODEL_TENSOR_H
#define Q3_MODEL_TENSOR_H

#include "base/error.h"

#include <stdint.h>

enum {
    Q3_RANK_MAX = 8,
    Q3_NAME_MAX = 256, // bytes of a tensor's name, the terminator included
};

// The element types of safetensors (github.com/huggingface/safetensors). The values are those of
// FORMAT.md and never change.
typedef enum q3_dtype {
    Q3_BOOL = 1,
    Q3_U8 = 2,
    Q3_I8 = 3,
    Q3_F8_E4M3 = 4,
    Q3_F8_E5M2 = 5,
    Q3_U16 = 6,
    Q3_I16 = 7,
    Q3_F16 = 8,
    Q3_BF16 = 9,
    Q3_U32 = 10,
    Q3_I32 = 11,
    Q3_F32 = 12,
    Q3_U64 = 13,
    Q3_I64 = 14,
    Q3_F64 = 15,
} q3_dtype;

// "BF16"; NULL for a number that is no dtype.
const char *q3_dtype_name(unsigned dtype);
// Bytes an element; 0 for a number that is no dtype.
size_t q3_dtype_size(unsigned dtype);
bool q3_dtype_parse(const char *name, q3_dtype *dtype);

// The separately usable parts of a checkpoint. `text` is what generates text.
typedef enum q3_component {
    Q3_TEXT,
    Q3_AUDIO_TOWER,
    Q3_VISUAL,
    Q3_TALKER,
    Q3_CODE2WAV,
    Q3_COMPONENTS
} q3_component;

// "text", "audio_tower", "visual", "talker", "code2wav".
const char *q3_component_name(q3_component component);
bool q3_component_parse(const char *name, q3_component *component);

// The role of a tensor in the text model. Each role is a pack file of its own (attention, norms and
// router once a layer, Q3_EXPERT once an expert); a component other than text is one file.
typedef enum q3_part {
    Q3_EMBEDDING,
    Q3_ATTENTION,
    Q3_NORMS,
    Q3_ROUTER,
    Q3_EXPERT,
    Q3_FINAL_NORM,
    Q3_LM_HEAD,
    Q3_WHOLE, // a component other than text
} q3_part;

// What a pack file holds. layer and expert are 0 where the part has none.
typedef struct q3_place {
    q3_component component;
    q3_part part;
    uint32_t layer, expert;
} q3_place;

// Orders places as `q3-pack list` shows them: by component, then embedding, layers in ascending
// order (attention, norms, router, experts), final norm, LM head. Like strcmp.
int q3_place_compare(const q3_place *a, const q3_place *b);

enum { Q3_PLACE_PATH_MAX = 64 };
// The path of the place's pack file in a pack directory, such as "layers/07/experts/042.q3p" (two
// and three digits, more where the number needs them), and its inverse, which accepts nothing else.
const char *q3_place_path(const q3_place *place, char out[Q3_PLACE_PATH_MAX]);
bool q3_place_parse(const char *path, q3_place *place);

typedef struct q3_tensor {
    const char *name;
    q3_dtype dtype;
    unsigned rank;               // at most Q3_RANK_MAX; 0 for a scalar
    uint64_t shape[Q3_RANK_MAX]; // row-major, the slowest dimension first
    uint64_t bytes;              // elements times the dtype's size
} q3_tensor;

// Computes tensor->bytes from dtype, rank and shape; false when the product wraps.
bool q3_tensor_size(q3_tensor *tensor);

enum { Q3_SHAPE_TEXT_MAX = Q3_RANK_MAX * 23 + 3 };
// "[768, 2048]".
const char *q3_shape_text(unsigned rank, const uint64_t *shape, char out[Q3_SHAPE_TEXT_MAX]);
bool q3_shape_equal(unsigned rank_a, const uint64_t *a, unsigned rank_b, const uint64_t *b);

#endif
