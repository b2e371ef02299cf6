// SPDX-License-Identifier: Apache-2.0
#include "pool/heatmap.h"
#include "base/text.h"
#include "cli.h"
#include "profiles.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// "story.txt and 2 more; tokens: prompt 1,234, answer 567". Of paths the last part: pictures
// travel.
static char *describe_texts(const q3_profile *profile, q3_error *err)
{
    char prompt[Q3_GROUPED_MAX], answer[Q3_GROUPED_MAX], more[40] = "";
    const char *name = profile->text_count ? profile->texts[0].name : "";
    const char *slash = strrchr(name, '/');
    if (profile->text_count > 1)
        snprintf(more, sizeof more, " and %zu more", profile->text_count - 1);
    return q3_format(err, "%s%s%stokens: prompt %s, answer %s", slash ? slash + 1 : name, more,
                     profile->text_count ? "; " : "",
                     q3_grouped(profile->tokens[Q3_PHASE_PROMPT], prompt),
                     q3_grouped(profile->tokens[Q3_PHASE_ANSWER], answer));
}

static bool draw(const q3_profiles *profiles, const q3_pool *pool, q3_error *err)
{
    static const struct {
        const char *name, *title, *what;
    } words[Q3_MEASURES] = {
        {"chosen", "How often each expert is chosen", "share of its layer's choices"},
        {"weight", "The weight each expert is given", "share of its layer's routing weight"},
        {"score", "What each expert adds",
         "share of its layer's score: routing weight \u00d7 norm of "
         "the output"},
        {"mass", "What the router wants",
         "share of its layer's routing probability, chosen or "
         "not"},
    };
    q3_measure measure = Q3_MEASURE_SCORE;
    q3_measure_parse(q3_options.by, &measure);
    const bool all = strcmp(q3_options.phase, "all") == 0;
    char *texts = describe_texts(&profiles->first, err);
    char *title = texts ? q3_format(err, "%s%s%s", words[measure].title,
                                    all ? "" : ": tokens of the ", all ? "" : q3_options.phase)
                        : NULL;
    const q3_heatmap map = {
        .title = title,
        .subtitle = texts,
        .what = words[measure].what,
        .layers = profiles->first.layers,
        .experts = profiles->first.experts,
        .share = profiles->share[0],
        .pool = pool,
        .sort = q3_options.sort,
    };
    char *text = NULL;
    size_t size;
    const bool ok =
        title && q3_heatmap_draw(&map, &text, &size, err) && q3_write_result(text, size, err);
    free(text);
    free(title);
    free(texts);
    return ok;
}

int q3_command_heatmap(const char *const *arguments)
{
    q3_error err;
    q3_profiles profiles;
    q3_pool pool = {0};
    if (!q3_profiles_read(arguments, &profiles, &err))
        return q3_report(&err);
    const bool ok = (!q3_options.pool || q3_pool_read(q3_options.pool, profiles.first.layers,
                                                      profiles.first.experts, &pool, &err)) &&
                    draw(&profiles, q3_options.pool ? &pool : NULL, &err);
    q3_pool_destroy(&pool);
    q3_profiles_free(&profiles);
    return ok ? Q3_DONE : q3_report(&err);
}
