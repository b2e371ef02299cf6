// SPDX-License-Identifier: Apache-2.0
#include "model_config.h"

#include "base/file.h"

#include <stdlib.h>
#include <string.h>

static cJSON *member(const cJSON *object, const char *key)
{
    return cJSON_GetObjectItemCaseSensitive(object, key);
}

// The object that has the text model's configuration; reading it before has shown that it is there.
static cJSON *find_text_config(const q3_export_plan *plan)
{
    cJSON *object = plan->config.root;
    for (const char *at = plan->set.config.family->text_config; *at;) {
        char key[64];
        const size_t length = strcspn(at, ".");
        memcpy(key, at, length);
        key[length] = 0;
        object = member(object, key);
        at += length + (at[length] == '.');
    }
    return object;
}

static bool set_number(cJSON *item, uint32_t number)
{
    if ((uint32_t)item->valuedouble == number)
        return false;
    cJSON_SetNumberValue(item, number);
    free(item->valuestring);
    item->valuestring = NULL;
    return true;
}

static bool change_experts(const q3_export_plan *plan, cJSON *text)
{
    const bool experts = set_number(member(text, "num_experts"), plan->kept.count);
    return set_number(member(text, "num_experts_per_tok"), plan->top_k) || experts;
}

static bool lacks(const q3_set *set, q3_component component)
{
    return set->components[component].tensors < set->components[component].expected_tensors;
}

static bool publish(const char *directory, const char *text, size_t size, q3_error *err)
{
    char *path = q3_path_join(directory, "config.json", err);
    const bool ok = path && q3_file_publish(path, text, size, err);
    free(path);
    return ok;
}

static bool copy_config(const q3_set *set, const char *directory, q3_error *err)
{
    char *data = NULL;
    size_t size;
    const bool ok = q3_set_load_copy(set, "config.json", &data, &size, err) &&
                    publish(directory, data, size, err);
    free(data);
    return ok;
}

static bool publish_json(q3_json_writer *json, const char *directory, q3_error *err)
{
    const bool ok = q3_json_finish(json, err) && publish(directory, json->text, json->size, err);
    q3_json_writer_free(json);
    return ok;
}

// The original layout.
static bool write_changed(q3_export_plan *plan, const char *directory, q3_error *err)
{
    bool changed = change_experts(plan, find_text_config(plan));
    if (lacks(&plan->set, Q3_TALKER) || lacks(&plan->set, Q3_CODE2WAV)) {
        // Absent means true.
        cJSON *root = plan->config.root, *no = cJSON_CreateFalse();
        if (!no || !(member(root, "enable_audio_output")
                         ? cJSON_ReplaceItemInObjectCaseSensitive(root, "enable_audio_output", no)
                         : cJSON_AddItemToObject(root, "enable_audio_output", no))) {
            cJSON_Delete(no);
            return q3_fail(err, Q3_FAILED, "out of memory (config.json)");
        }
        changed = true;
    }
    if (!changed)
        return copy_config(&plan->set, directory, err);
    q3_json_writer json = {0};
    q3_json_put_item(&json, NULL, plan->config.root);
    return publish_json(&json, directory, err);
}

// The first of these objects' members that says something.
static cJSON *first_of(cJSON *const objects[], size_t count, const char *key)
{
    for (size_t i = 0; i < count; i++) {
        cJSON *item = member(objects[i], key);
        if (item && !cJSON_IsNull(item))
            return item;
    }
    return NULL;
}

static bool is_replaced(const char *key)
{
    static const char *const keys[] = {
        "architectures",   "model_type",   "dtype",      "torch_dtype",   "eos_token_id",
        "rope_parameters", "rope_scaling", "rope_theta", "mrope_section", "mrope_interleaved"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (strcmp(key, keys[i]) == 0)
            return true;
    return false;
}

// The text model alone.
static bool write_text_model(q3_export_plan *plan, const char *directory, q3_error *err)
{
    static const char *const dtype_keys[] = {"dtype", "torch_dtype"};
    cJSON *text = find_text_config(plan), *root = plan->config.root;
    cJSON *const scopes[] = {text, member(root, "thinker_config"), root};
    change_experts(plan, text);
    q3_json_writer json = {0};
    q3_json_begin_object(&json, NULL);
    q3_json_begin_array(&json, "architectures");
    q3_json_put_string(&json, NULL, "Qwen3MoeForCausalLM");
    q3_json_end_array(&json);
    q3_json_put_string(&json, "model_type", "qwen3_moe");
    for (size_t i = 0; i < 2; i++) {
        cJSON *item = first_of(scopes, 3, dtype_keys[i]);
        if (item)
            q3_json_put_item(&json, dtype_keys[i], item);
    }
    // Generation with the whole model is told where to stop; a language model says it itself.
    cJSON *const ends[] = {text};
    cJSON *end = first_of(ends, 1, "eos_token_id");
    end = end ? end : member(root, "im_end_token_id");
    if (end)
        q3_json_put_item(&json, "eos_token_id", end);
    q3_json_put_double(&json, "rope_theta", plan->set.config.rope_theta);
    q3_json_put_null(&json, "rope_scaling");
    for (cJSON *item = text->child; item; item = item->next)
        if (!is_replaced(item->string))
            q3_json_put_item(&json, item->string, item);
    q3_json_end_object(&json);
    return publish_json(&json, directory, err);
}

bool q3_export_config(q3_export_plan *plan, const char *directory, q3_error *err)
{
    return plan->options->text_model ? write_text_model(plan, directory, err)
                                     : write_changed(plan, directory, err);
}
