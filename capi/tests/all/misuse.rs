//! What no program should do: the library says so, and goes on. All of it under sanitizers.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::header;
use crate::kit::{Build, compile, has, here, run, skips};

fn runs(source: &str, says: &str) {
    let program = compile(&here().join("tests/c").join(source), Build::Sanitized);
    let place = tempfile::tempdir().unwrap();
    let mut command = Command::new(&program);
    command.current_dir(place.path());
    let (status, lines) = run(command, None).end();
    assert!(status.success() && lines == [says], "{status} {lines:?}");
}

#[test]
fn calls_from_within_callbacks_and_loans_given_back_twice() {
    runs("inside.c", "all was refused that had to be");
}

#[test]
fn groups_shards_states_and_questions() {
    runs("whole.c", "all is there");
}

#[test]
fn who_stands_still_is_left_out_of_a_group_with_a_bound() {
    runs("slow.c", "who stood still is out");
}

#[test]
fn what_all_members_reply_and_who_was_lost() {
    runs("replies.c", "all have replied");
}

#[test]
fn durable_groups_begin_again_with_what_they_had() {
    runs("durable.c", "all came again");
}

#[test]
fn logs_are_read_from_a_record_or_a_time_on_and_damage_is_told() {
    runs("log.c", "all was read");
}

#[test]
fn batches_are_sent_as_far_as_there_is_room_and_given_back_once() {
    runs("batch.c", "all came back");
}

#[test]
fn threads_that_send_while_another_closes() {
    runs("closing.c", "all ended");
}

/// Runs a program under valgrind, over TCP: it doesn't know the system calls that shared memory takes. Its library is one
/// that makes system calls through libc, for valgrind hides the kernel's own page from the process; `cargo xtask valgrind` builds it.
fn under_valgrind(source: &Path, says: &str) {
    if !has("valgrind", "valgrind") {
        return;
    }
    let Some(library) = std::env::var_os("CONSORT_VALGRIND_LIBRARY") else {
        skips("this takes a library of its own; `cargo xtask valgrind` builds it and runs this");
        return;
    };
    let program = compile(source, Build::Plain);
    let mut command = Command::new("valgrind");
    command.args(["--quiet", "--error-exitcode=9", "--leak-check=no", "--fair-sched=yes"]).arg(&program);
    // What the program was told is the other library; this is preferred by its name.
    let place = tempfile::tempdir().unwrap();
    command.current_dir(place.path()).env("OVER_TCP", "1").env("LD_PRELOAD", library);
    let (status, lines) = run(command, None).end();
    assert!(status.success() && lines == [says], "{status} {lines:?}");
}

#[test]
fn valgrind_finds_nothing_in_calls_from_within_callbacks() {
    under_valgrind(&here().join("tests/c/inside.c"), "all was refused that had to be");
}

#[test]
fn valgrind_finds_nothing_in_calls_with_null_and_freed_handles() {
    under_valgrind(&refused("refused-valgrind.c").0, "all was refused");
}

/// The handles' types, as parameters.
const HANDLES: [&str; 9] =
    ["node", "group", "outcome", "replica", "pending", "replies", "log", "writer", "reader"];

/// Parameters that may be NULL, as the header says.
const MAY_BE_NULL: [&str; 15] = [
    "void *context",
    "consort_done_fn done",
    "uint64_t *ticket",
    "uint64_t *tickets",
    "uint32_t *worked",
    "uint32_t *told",
    "consort_delivered *delivered",
    "consort_bytes *reply",
    "const char *name",
    "const void *data",
    "const void *update",
    "const uint8_t *key",
    "uint8_t *buffer",
    "consort_status status",
    "void",
];

/// An argument that can be, for a parameter; handles are live ones.
fn argument(parameter: &str) -> String {
    if let Some(handle) = HANDLES
        .iter()
        .find(|it| parameter.starts_with(&format!("consort_{it} *")) && !parameter.contains("**"))
    {
        return format!("{handle}s");
    }
    let (kind, name) = parameter.rsplit_once([' ', '*']).unwrap();
    match (kind.trim(), name) {
        ("size_t", "struct_size") => "8".into(),
        ("size_t", _) if !parameter.contains('*') => "1".into(),
        ("int64_t" | "uint32_t" | "uint64_t", _) if !parameter.contains('*') => "0".into(),
        ("const char", _) => "\"127.0.0.1:1\"".into(),
        ("const void" | "const uint8_t", _) => "(const void *)\"sixteen bytes at least\"".into(),
        ("void", _) => "NULL".into(),
        ("consort_on_event", _) => "on_event".into(),
        ("consort_on_outcome", _) => "on_outcome".into(),
        ("consort_on_reply", _) => "on_reply".into(),
        ("consort_on_fresh", _) => "on_fresh".into(),
        ("consort_on_replies", _) => "on_replies".into(),
        ("consort_look", _) => "look".into(),
        ("consort_read_fn", _) => "read_piece".into(),
        ("consort_write_fn", _) => "write_one".into(),
        ("consort_done_fn", _) => "NULL".into(),
        ("const consort_node_options", _) => "&options".into(),
        ("const consort_machine", _) => "&machine".into(),
        ("const consort_event", _) => "&none".into(),
        ("const consort_message", _) => "(const consort_message *)(const void *)untouched".into(),
        _ => "(void *)untouched".into(),
    }
}

/// A program that calls every function: with each handle NULL, freed, and of another type; and with each other pointer NULL. Whatever it
/// gives there must stay untouched.
fn source() -> (String, BTreeSet<String>) {
    let mut source = String::from(
        "#include \"misuse.h\"\n#include <sys/stat.h>\n\
         static void on_event(void *c, const consort_event *e) { (void)c, (void)e; }\n\
         static void on_outcome(void *c, consort_status s, const consort_delivered *d) { (void)c, (void)s, (void)d; }\n\
         static void on_reply(void *c, consort_status s, const void *r, size_t l) { (void)c, (void)s, (void)r, (void)l; }\n\
         static void on_replies(void *c, consort_status s, const consort_reply *r, size_t l) { (void)c, (void)s, (void)r, (void)l; }\n\
         static void on_fresh(void *c, consort_status s) { (void)c, (void)s; }\n\
         static void write_one(void *c, size_t i, void *d, size_t l) { (void)c, (void)i, (void)d, (void)l; }\n\
         static void look(void *c, void *m) { (void)c, (void)m; }\n\
         static int read_piece(void *c, uint8_t *b, size_t l, size_t *g) { (void)c, (void)b, (void)l; *g = 0; return 0; }\n\
         static uint64_t untouched[64];\n\
         static void same(int line)\n{\n    for (size_t at = 0; at < 64; at++)\n        if (untouched[at] != 0)\n            \
         printf(\"line %d: an output was written\\n\", line);\n}\n\
         #define REFUSED(wanted, call) EXPECT(wanted, call); same(__LINE__)\n\
         int main(void)\n{\n    \
         consort_node_options options = alone(1);\n    consort_event none;\n    sloppy state, other;\n    \
         consort_node *nodes;\n    consort_group *groups;\n    consort_outcome *outcomes;\n    consort_replica *replicas;\n    \
         consort_pending *pendings;\n    consort_replies *repliess;\n    consort_log *logs;\n    consort_writer *writers;\n    consort_reader *readers = NULL;\n    consort_machine machine;\n    \
         memset(&none, 0, sizeof none);\n    memset(&state, 0, sizeof state);\n    memset(&other, 0, sizeof other);\n    \
         machine = sloppy_machine(&state);\n    options.key = (const uint8_t *)\"sixteen bytes at least\";\n    options.key_len = 22;\n    \
         MUST(consort_node_new(&options, &nodes));\n    MUST(consort_node_group(nodes, NULL, 0, &groups));\n    \
         MUST(consort_multicast_tracked(groups, \"x\", 1, &outcomes));\n    MUST(consort_replica_new(&options, &machine, &replicas));\n    \
         MUST(consort_replica_update_all(replicas, \"x\", 1, &repliess));\n    \
         SURE(mkdir(\"empty\", 0700) == 0 && mkdir(\"empty/shard-0\", 0700) == 0);\n    \
         MUST(consort_log_open(\"empty\", 0, CONSORT_FROM_INDEX, 0, &logs));\n    \
         MUST(consort_replica_submit(replicas, \"x\", 1, &pendings));\n    MUST(consort_pending_wait(pendings, -1, NULL));\n    \
         writers = state.writer;\n    machine = sloppy_machine(&other);\n",
    );
    let functions = header::functions();
    let mut covered = BTreeSet::new();
    let mut write = |wanted: &str, name: &str, arguments: Vec<String>, state: &str| {
        writeln!(source, "    /* {state} */\n    REFUSED({wanted}, {name}({}));", arguments.join(", "))
            .unwrap();
        covered.insert(name.to_owned());
    };
    let is_handle = |it: &str| {
        HANDLES.iter().any(|handle| it.starts_with(&format!("consort_{handle} *")) && !it.contains("**"))
    };
    for (name, (result, parameters)) in &functions {
        if result != "consort_status" {
            continue;
        }
        let good: Vec<_> = parameters.iter().map(|it| argument(it)).collect();
        for (at, parameter) in parameters.iter().enumerate() {
            let with = |other: &str| {
                let mut arguments = good.clone();
                arguments[at] = other.to_owned();
                arguments
            };
            if is_handle(parameter) {
                write("CONSORT_INVALID", name, with("NULL"), "a NULL handle");
                let other = if parameter.starts_with("consort_node ") { "groups" } else { "nodes" };
                let kind = parameter.split(' ').next().unwrap();
                write(
                    "CONSORT_BAD_HANDLE",
                    name,
                    with(&format!("({kind} *)(void *){other}")),
                    "another type",
                );
                write("CONSORT_BAD_HANDLE", name, with(&format!("({kind} *)(void *)0x1234")), "no handle");
            } else if (parameter.contains('*')
                || parameter.starts_with("consort_on")
                || parameter == "consort_look look"
                || parameter == "consort_write_fn write"
                || parameter == "consort_read_fn read")
                && !MAY_BE_NULL.contains(&parameter.as_str())
            {
                write("CONSORT_INVALID", name, with("NULL"), "a NULL pointer");
            } else if ["const void *", "const uint8_t *", "uint8_t *"]
                .iter()
                .any(|it| parameter.starts_with(it))
                && !parameters
                    .iter()
                    .any(|it| it.starts_with("consort_reader") || it.starts_with("consort_writer"))
            {
                write("CONSORT_INVALID", name, with("NULL"), "no bytes, and a length");
            }
        }
    }
    source += "    MUST(consort_outcome_free(outcomes));\n    MUST(consort_pending_free(pendings));\n    MUST(consort_replies_free(repliess));\n    MUST(consort_log_free(logs));\n    MUST(consort_replica_free(replicas));\n    \
               MUST(consort_node_free(nodes));\n    MUST(consort_group_free(groups));\n";
    for (name, (result, parameters)) in &functions {
        if result == "consort_status"
            && parameters.iter().any(|it| is_handle(it))
            && !parameters.iter().any(|it| it.starts_with("consort_reader"))
        {
            let arguments: Vec<_> = parameters.iter().map(|it| argument(it)).collect();
            writeln!(
                source,
                "    /* freed */\n    REFUSED(CONSORT_BAD_HANDLE, {name}({}));",
                arguments.join(", ")
            )
            .unwrap();
        }
    }
    source += "    (void)readers;\n    SURE(other.is_freed == 0 && state.is_freed == 1);\n    puts(\"all was refused\");\n    return 0;\n}\n";
    (source, covered)
}

/// That program, and what it calls.
fn refused(name: &str) -> (PathBuf, BTreeSet<String>) {
    let (source, covered) = source();
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&file, source).unwrap();
    (file, covered)
}

#[test]
fn every_function_with_null_and_freed_handles() {
    let (file, covered) = refused("refused.c");
    let without: Vec<_> = header::functions()
        .into_iter()
        .filter(|(name, (result, _))| result == "consort_status" && !covered.contains(name))
        .collect();
    assert!(without.is_empty(), "not called: {without:?}");
    let place = tempfile::tempdir().unwrap();
    let mut command = Command::new(compile(&file, Build::Sanitized));
    command.current_dir(place.path());
    let (status, lines) = run(command, None).end();
    assert!(status.success() && lines == ["all was refused"], "{status} {lines:?}");
}
