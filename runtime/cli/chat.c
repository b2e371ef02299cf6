// SPDX-License-Identifier: Apache-2.0
//
// q3-run chat: a conversation, a line of standard input for each turn. What was said stays in the
// KV cache; only what is new is fed.
#include "cli.h"

#include "base/interrupt.h"
#include "base/progress.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char help[] = "Type a line to say something to the model.\n"
                           "  /reset  forget the conversation\n"
                           "  /help   print this text\n"
                           "  /exit   end (so does Ctrl-D)\n"
                           "Ctrl-C stops an answer.\n";

typedef struct conversation {
    q3_loaded loaded;
    bool terminal; // a person is at it
    bool open;     // an answer has been given that the next turn has to close
    q3_ids turn;   // what is fed next: an unfed last token, then the new turn
    size_t unfed;  // 1 when the turn begins with such a token
} conversation;

static void reset(conversation *c)
{
    q3_session_truncate(c->loaded.session, 0);
    q3_sampler_reset(c->loaded.sampler);
    c->open = false;
    c->unfed = 0;
}

// Puts the turn's ids behind the unfed token.
static bool encode_turn(conversation *c, q3_bytes user, q3_error *err)
{
    const q3_bytes system = {(const uint8_t *)q3_options.system,
                             q3_options.system ? strlen(q3_options.system) : 0};
    c->turn.count = c->unfed;
    return c->open ? q3_chat_next(c->loaded.tokenizer, user, &c->turn, err)
                   : q3_chat_first(c->loaded.tokenizer, q3_options.system ? &system : NULL, user,
                                   &c->turn, err);
}

static bool answer(conversation *c, q3_generation *result, q3_error *err)
{
    q3_loaded *loaded = &c->loaded;
    q3_run_statistics run = {.load_seconds = loaded->seconds};
    q3_statistics_begin(loaded, &run);
    const size_t length = q3_session_length(loaded->session) + c->turn.count;
    if (!q3_check_length(loaded, "the conversation", length, err))
        return false;
    const double started = q3_now();
    if (!q3_session_feed(loaded->session, c->turn.ids, c->turn.count, NULL, err))
        return false;
    run.prompt_seconds = q3_now() - started;
    run.prompt_tokens = c->turn.count;
    q3_sampler_see(loaded->sampler, c->turn.ids + c->unfed, c->turn.count - c->unfed);
    c->open = true;
    c->unfed = 0;
    if (!q3_answer(loaded, false, result, err))
        return false;
    if (result->last_unfed) {
        c->turn.count = 0;
        if (!q3_ids_append(&c->turn, result->ids.ids[result->ids.count - 1], err))
            return false;
        c->unfed = 1;
    }
    run.answer_seconds = result->seconds;
    run.answer_tokens = result->ids.count;
    run.answer_ids = result->ids.ids;
    if (!q3_say("\n", 1, err) || !q3_statistics_show(loaded, &run, err))
        return false;
    if (result->reason == Q3_STOP_CONTEXT)
        fprintf(stderr, "the context of %" PRIu32 " tokens is full: /reset starts anew\n",
                q3_session_context(loaded->session));
    return true;
}

// Answers a line. At a terminal an interrupted or refused turn is no reason to end.
static bool take_turn(conversation *c, q3_bytes user, q3_error *err)
{
    q3_generation result = {0};
    bool ok = encode_turn(c, user, err) && answer(c, &result, err);
    if (ok && result.reason == Q3_STOP_INTERRUPTED && !c->terminal)
        ok = q3_check_interrupt(err);
    q3_generation_free(&result);
    if (c->terminal) {
        if (!ok && err->code == Q3_INTERRUPTED) {
            ok = q3_say("\n", 1, err);
        } else if (!ok && (err->code == Q3_USAGE || err->code == Q3_MALFORMED)) {
            q3_report(err);
            ok = true;
        }
        q3_interrupt_clear();
    }
    return ok;
}

typedef enum line_kind { LINE_TEXT, LINE_NOTHING, LINE_EXIT } line_kind;

static line_kind run_line(conversation *c, const char *line)
{
    if (!*line)
        return LINE_NOTHING;
    if (*line != '/')
        return LINE_TEXT;
    if (strcmp(line, "/exit") == 0)
        return LINE_EXIT;
    if (strcmp(line, "/reset") == 0)
        reset(c);
    else if (strcmp(line, "/help") == 0)
        fputs(help, stderr);
    else
        fprintf(stderr, "unknown command %.40s: /help lists them\n", line);
    return LINE_NOTHING;
}

static bool converse(conversation *c, q3_error *err)
{
    q3_lines lines = {0};
    if (c->terminal)
        fputs("Type a message. /help lists the commands.\n", stderr);
    for (;;) {
        char *line;
        size_t size;
        if (c->terminal && !q3_say("> ", 2, err))
            break;
        const int more = q3_next_line(&lines, &line, &size, err);
        if (more < 1 && c->terminal)
            fputc('\n', stderr);
        const line_kind kind = more == 1 ? run_line(c, line) : LINE_EXIT;
        if (kind == LINE_EXIT) {
            q3_lines_free(&lines);
            return more >= 0;
        }
        if (kind == LINE_TEXT && !take_turn(c, (q3_bytes){(const uint8_t *)line, size}, err))
            break;
    }
    q3_lines_free(&lines);
    return false;
}

int q3_command_chat(const char *const *arguments)
{
    q3_error err;
    conversation c = {.terminal = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO)};
    bool ok = q3_check_stops(&err) && q3_loaded_open(arguments[0], true, &c.loaded, &err) &&
              converse(&c, &err);
    ok = q3_loaded_end_trace(&c.loaded, ok, &err);
    if (ok)
        q3_warn_of_pool(&c.loaded);
    q3_ids_free(&c.turn);
    q3_loaded_close(&c.loaded);
    return ok ? Q3_DONE : q3_report(&err);
}
