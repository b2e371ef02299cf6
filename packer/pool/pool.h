// SPDX-License-Identifier: Apache-2.0
//
// A pool: some experts of each layer. The runtime limits the router to them, the extractor writes
// only them.
//
// A pool file is JSON: {"layers": [[3, 17, 42], …]}, one list of expert numbers for each layer of
// the model, in any order, none empty, none with a number twice. Other members of the object say
// where the pool comes from, for people and other programs, and are not read: POOLS.md lists those
// that q3-pack writes.
#ifndef Q3_POOL_H
#define Q3_POOL_H

#include "base/hash.h"
#include "base/json.h"

typedef struct q3_pool {
    uint32_t layers, experts;
    bool *members;   // [layer][expert]
    uint32_t *count; // of the members of each layer
    uint64_t total;
} q3_pool;

// A pool without members. It is to be destroyed; after a failure that is not needed, here and in
// all functions that make a pool.
bool q3_pool_create(uint32_t layers, uint32_t experts, q3_pool *pool, q3_error *err);
void q3_pool_destroy(q3_pool *pool); // a zeroed or destroyed one is fine

bool q3_pool_has(const q3_pool *pool, uint32_t layer, uint32_t expert);
// Adds a member; one that is there already is fine.
void q3_pool_add(q3_pool *pool, uint32_t layer, uint32_t expert);
// Adds all members of `other`, which is of the same model.
void q3_pool_add_all(q3_pool *pool, const q3_pool *other);

// Reads a pool file (64 MiB at most) of a model of so many layers and experts a layer.
bool q3_pool_read(const char *path, uint32_t layers, uint32_t experts, q3_pool *pool,
                  q3_error *err);

// Writes the member "layers" into an object that has been begun: one line a layer, numbers
// ascending.
void q3_pool_put(const q3_pool *pool, q3_json_writer *out);
// Writes a pool file with this one member, published.
bool q3_pool_write(const q3_pool *pool, const char *path, q3_error *err);

// What tells two pools apart: the hash of their members, however the files spell them.
q3_hash128 q3_pool_hash(const q3_pool *pool);

#endif
