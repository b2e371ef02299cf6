// SPDX-License-Identifier: Apache-2.0
//
// The weights of a pack as the forward pass wants them.
//
// Opening reads no weights: it finds every file that the text model needs, and checks each tensor
// in it (name, dtype, shape) against the configuration, so that what is wrong is known before the
// first token. Loading then reads what every token needs (attention, norms, routers, final norm, LM
// head) into memory of its own, each frame's checksum verified; the files are not mapped, so one
// that shrinks later is an error of whoever reads it and not a crash. Experts are read by the
// expert cache, rows of the embedding by embedding.h.
//
// Matrices lie in memory in one of three forms. bf12: twelve bits a weight (kernels/bf12.h), the
// fastest to multiply with by one vector; a block with too many exceptions stays as the pack stores
// it. Stored: as the pack stores them (matrix.h) where a product can read that, which is plain and
// bit-plane frames of whole rows; the smallest, and the slowest. Plain: bf16, a third larger than
// bf12. Rows that a form cannot take are plain. An expert that passes (expert_cache.h) is stored,
// whatever the form is.
#ifndef Q3_RUNTIME_MODEL_H
#define Q3_RUNTIME_MODEL_H

#include "matrix.h"
#include "region.h"
#include "set.h"
#include "team.h"

// What every token needs of a layer.
typedef struct q3_layer {
    q3_matrix query, key, value, output; // the attention's projections
    q3_matrix router;                    // a logit for each expert
    const uint16_t *query_norm, *key_norm;
    const uint16_t *input_norm, *post_attention_norm;
} q3_layer;

typedef enum q3_form { Q3_FORM_STORED, Q3_FORM_BF12, Q3_FORM_PLAIN, Q3_FORMS } q3_form;

// What becomes of a matrix, or of the three of an expert, as it is read.
typedef enum q3_reading {
    Q3_READING_DECODES,  // rows of bf16
    Q3_READING_KEEPS,    // as it is stored
    Q3_READING_SHORTENS, // bf12
} q3_reading;

typedef struct q3_model {
    q3_set set;
    const q3_config *config; // set.config
    const q3_kernels *kernels;
    q3_layer *layers; // filled by loading, like the two below
    const uint16_t *final_norm;
    q3_matrix lm_head;
    bool *held;          // [layer][expert]: which experts the pack has; at least one in every layer
    uint64_t held_count; // in all layers
    q3_form form;        // of the dense weights, and of experts that stay; stored until it is set
    // For each form, and each file of the set: memory that its matrices take, and what becomes of
    // an expert.
    uint64_t *file_bytes[Q3_FORMS];
    q3_reading *file_reading[Q3_FORMS];
    uint64_t *file_block_bytes; // of the longest frame that is made bf12
    bool *file_has_zstd;        // whose decoder has a state
    q3_region dense;
} q3_model;

// Opens the pack directory. A pack that lacks a part that every token needs, or all experts of a
// layer, is Q3_INCOMPLETE; a tensor that is not as the configuration says is Q3_MALFORMED.
bool q3_model_open(const char *directory, const q3_kernels *kernels, const q3_team *team,
                   q3_model *model, q3_error *err);
// Reads the weights that every token needs.
bool q3_model_load(q3_model *model, const q3_team *team, q3_error *err);
void q3_model_close(q3_model *model); // a zeroed or closed one is fine

// Opens the file of a place and checks all its tensors against the configuration.
bool q3_model_open_part(const q3_model *model, const q3_place *place, q3_pack *pack, q3_error *err);

// The embedding in its opened file.
const q3_pack_tensor *q3_model_embedding(const q3_model *model, const q3_pack *pack, q3_error *err);

// An expert in memory: y = down (silu(gate x) * (up x)). gate and up are cut into the same blocks.
typedef struct q3_expert {
    uint32_t number;
    q3_matrix gate, up, down;
} q3_expert;

// Memory that loading takes.
uint64_t q3_model_dense_bytes(const q3_model *model);

// Memory that an expert takes in a form, a multiple of a page; 0 when the pack has not got it.
uint64_t q3_model_expert_bytes(const q3_model *model, q3_form form, uint32_t layer,
                               uint32_t expert);

// Memory that any expert takes as it is stored, if the model's form is another one and a product
// can read all of them so; else 0.
uint64_t q3_model_passing_bytes(const q3_model *model);

// Memory that a reader's block needs for any expert.
uint64_t q3_model_block_bytes(const q3_model *model);

// Reading an expert, in a form, to that much memory, at a multiple of a page, takes steps that
// several threads can share. Opening gives the file that is to be read, whole, to the memory from
// *image on, with q3_file_read_piece (around the page cache if `direct`); of an expert that is
// decoded there is none: *file is a closed one of size 0. Taking verifies every checksum and makes
// the matrices of the image, as far as it goes with the file's first `arrived` bytes, while others
// read what comes behind; one call at a time, by any thread. The last call has the file's size for
// it (that of an expert that is decoded reads it), and only then the expert is one that may be
// used. The reader has a block of q3_model_block_bytes.
typedef struct q3_taking q3_taking;
bool q3_model_open_expert(const q3_model *model, q3_form form, uint32_t layer, uint32_t expert,
                          bool direct, uint8_t *memory, q3_file *file, uint64_t *image,
                          q3_taking **taking, q3_error *err);
bool q3_model_take_expert(q3_taking *taking, uint64_t arrived, q3_frame_reader *reader,
                          q3_expert *result, q3_error *err);
void q3_taking_destroy(q3_taking *taking); // after a failed opening, too; NULL is fine

// The size of an expert's file; 0 when the pack has not got it.
uint64_t q3_model_expert_file_bytes(const q3_model *model, uint32_t layer, uint32_t expert);

// Says what is wrong with a part whose frames have turned out not to decode although their
// checksums are right.
void q3_model_diagnose(const q3_model *model, const q3_place *place, q3_frame_reader *reader,
                       q3_error *err);

#endif
