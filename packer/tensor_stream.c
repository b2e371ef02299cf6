// SPDX-License-Identifier: Apache-2.0
#include "tensor_stream.h"

#include "base/progress.h"
#include "base/workers.h"

#include <stdlib.h>

enum { SLOTS_PER_JOB = 8 };

// One frame on its way.
typedef struct frame_slot {
    q3_pack *pack;
    size_t which;
    uint32_t tensor, frame;
    bool closes; // the pack is not needed after this frame
    uint8_t *raw, *stored;
    size_t capacity;
} frame_slot;

typedef struct streaming {
    const q3_tensor_stream *stream;
    q3_coder **coders;
    q3_hasher *hasher; // over the tensor that is handed over
    // Packs that frames under way belong to. There is one more than there are slots: a pack that is
    // open and not the current one has a frame in a slot, so the oldest entry is free again.
    q3_pack *packs;
    size_t pack_count, current;
    bool open; // packs[current] is
    // The frame that comes next.
    size_t which;
    uint32_t frame;
    q3_progress progress;
} streaming;

static int next_frame(void *context, void *slot_memory, q3_error *err)
{
    streaming *s = context;
    frame_slot *slot = slot_memory;
    if (s->which == s->stream->count)
        return 0;
    const q3_tensor_place *place = &s->stream->tensors[s->which];
    if (!s->open) {
        s->current = (s->current + 1) % s->pack_count;
        const q3_set_file *file = &s->stream->set->files[place->file];
        if (!q3_set_open_pack(s->stream->set, file, &s->packs[s->current], err))
            return -1;
        s->open = true;
    }
    *slot = (frame_slot){.pack = &s->packs[s->current],
                         .which = s->which,
                         .tensor = place->index,
                         .frame = s->frame,
                         .raw = slot->raw,
                         .stored = slot->stored,
                         .capacity = slot->capacity};
    const q3_pack_tensor *tensor = &slot->pack->tensors[place->index];
    if (++s->frame >= tensor->frame_count) {
        s->frame = 0;
        s->which++;
        slot->closes =
            s->which == s->stream->count || s->stream->tensors[s->which].file != place->file;
        s->open = !slot->closes;
    }
    if (slot->capacity < tensor->frame_bytes) {
        free(slot->raw);
        slot->capacity = 0;
        slot->raw = q3_alloc(2, tensor->frame_bytes, err);
        if (!slot->raw)
            return -1;
        slot->capacity = tensor->frame_bytes;
        slot->stored = slot->raw + slot->capacity;
    }
    return 1;
}

static bool decode_frame(void *context, void *slot_memory, unsigned worker, q3_error *err)
{
    streaming *s = context;
    frame_slot *slot = slot_memory;
    const q3_pack_tensor *tensor = &slot->pack->tensors[slot->tensor];
    return tensor->frame_count == 0 ||
           q3_pack_read_frame(slot->pack, tensor, slot->frame, s->coders[worker], slot->stored,
                              slot->raw, err);
}

static bool hand_over(void *context, void *slot_memory, unsigned worker, q3_error *err)
{
    (void)worker;
    streaming *s = context;
    const frame_slot *slot = slot_memory;
    const q3_pack_tensor *tensor = &slot->pack->tensors[slot->tensor];
    q3_tensor_piece piece = {.which = slot->which,
                             .offset = (uint64_t)slot->frame * tensor->frame_bytes,
                             .data = slot->raw,
                             .last = slot->frame + 1 >= tensor->frame_count};
    if (tensor->frame_count) {
        piece.size = slot->pack->frames[tensor->first_frame + slot->frame].raw_bytes;
        q3_hasher_update(s->hasher, piece.data, piece.size);
    }
    bool ok = true;
    if (piece.last) {
        ok = q3_pack_check_tensor(slot->pack, tensor, q3_hasher_finish(s->hasher), err);
        q3_hasher_reset(s->hasher);
    }
    ok = ok && s->stream->put(s->stream->context, &piece, err);
    q3_progress_add(&s->progress, piece.size, tensor->tensor.name);
    if (slot->closes)
        q3_pack_close(slot->pack);
    return ok;
}

static void release_slot(void *context, void *slot_memory)
{
    (void)context;
    free(((frame_slot *)slot_memory)->raw);
}

bool q3_tensor_stream_run(const q3_tensor_stream *stream, q3_error *err)
{
    const unsigned jobs = stream->jobs;
    const size_t slots = (size_t)jobs * SLOTS_PER_JOB;
    streaming s = {.stream = stream, .pack_count = slots + 1};
    q3_workers *workers = NULL;
    s.hasher = q3_hasher_create(err);
    s.coders = s.hasher ? q3_alloc_zeroed(jobs, sizeof *s.coders, err) : NULL;
    s.packs = s.coders ? q3_alloc(s.pack_count, sizeof *s.packs, err) : NULL;
    for (size_t i = 0; s.packs && i < s.pack_count; i++)
        s.packs[i] = (q3_pack){.file = {.fd = -1}};
    bool ok = s.packs && q3_workers_create(jobs, &workers, err);
    for (unsigned i = 0; ok && i < jobs; i++)
        ok = (s.coders[i] = q3_coder_create(err)) != NULL;
    const q3_stream frames = {
        .context = &s,
        .slots = slots,
        .slot_bytes = sizeof(frame_slot),
        .next = next_frame,
        .work = decode_frame,
        .commit = hand_over,
        .release = release_slot,
    };
    q3_progress_begin(&s.progress, stream->verb, stream->bytes, stream->quiet);
    ok = ok && q3_workers_stream(workers, &frames, err);
    q3_progress_end(&s.progress);
    q3_workers_destroy(workers);
    for (unsigned i = 0; s.coders && i < jobs; i++)
        q3_coder_destroy(s.coders[i]);
    for (size_t i = 0; s.packs && i < s.pack_count; i++)
        q3_pack_close(&s.packs[i]);
    free(s.packs);
    free(s.coders);
    q3_hasher_destroy(s.hasher);
    return ok;
}
