//! The header against the implementation: what a C compiler makes of the one, and what is in the other.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::process::Command;

use consort_c::error::Status;
use consort_c::layout;

use crate::header;
use crate::kit::{Build, compile, has, here, library};

/// The sizes and offsets that the library has.
pub(crate) fn implemented() -> BTreeMap<String, usize> {
    let mut all = BTreeMap::new();
    macro_rules! layout_of {
        ($($name:literal: $type:ident { $($field:ident),* })*) => {$(
            all.insert(format!("{} size", $name), size_of::<layout::$type>());
            $(all.insert(format!("{} {}", $name, stringify!($field)), offset_of!(layout::$type, $field));)*
        )*};
    }
    layout_of! {
        "consort_peer": Peer { id, reserved, address }
        "consort_node_options": NodeOptions {
            struct_size, id, role, config_file, cluster, listen, advertise, peers, peers_len, join, join_len, groups, groups_len,
            key, key_len, domain, ring_bytes, silence_ms, quorum_within_ms, start_within_ms, slow_evict_ms, digest_every,
            listen_fd, fabric, guarantee, wait, state, rejoin, data, topology, reserved, snapshot_every
        }
        "consort_group_options": GroupOptions {
            struct_size, name, nodes, nodes_len, ring_bytes, shards, replicas, guarantee, state, topology, reserved,
            slow_evict_ms
        }
        "consort_group_info": GroupInfo { struct_size, ring_bytes, shard, index, shards, guarantee, state, reserved }
        "consort_stats": Stats {
            struct_size, delivered, sent, system_calls, bytes_out, bytes_in, sleeps, wakes, fabric, engine
        }
        "consort_room": Room { data, len, lent }
        "consort_message": Message { data, len }
        "consort_delivered": Delivered { view, seq }
        "consort_member": Member { node, role, incarnation, address, domain }
        "consort_shard": Shard { members, members_len, learners, learners_len, since, is_lost, reserved }
        "consort_view": View { id, members, members_len, shards, shards_len }
        "consort_event": Event {
            kind, shard, node, status, view, seq, ticket, number, data, len, members, text, lent, stamp
        }
        "consort_bytes": Bytes { data, len, lent }
        "consort_reply": Reply { node, status, data, len, text }
        "consort_record": Record { kind, node, index, view, seq, stamp, data, len, members }
        "consort_update": Update { data, len, view, seq, index, incarnation, node, reserved }
        "consort_machine": Machine { struct_size, context, apply, snapshot, restore, view_changed, free }
    }
    let mut constant = |name: &str, value: u32| all.insert(name.to_owned(), value as usize);
    macro_rules! constants {
        ($($name:ident = $c:literal),* $(,)?) => {$(constant($c, layout::$name);)*};
    }
    constants! {
        WAITING = "CONSORT_WAITING", EVICTED = "CONSORT_EVICTED_EVENT", VIEW = "CONSORT_VIEW", MESSAGE = "CONSORT_MESSAGE",
        SNAPSHOT = "CONSORT_SNAPSHOT", RESTORE = "CONSORT_RESTORE", ENDED = "CONSORT_ENDED_EVENT",
        READ_POINT = "CONSORT_READ_POINT", DIGEST = "CONSORT_DIGEST", STOPPED = "CONSORT_STOPPED_EVENT",
        ATOMIC = "CONSORT_ATOMIC", AGREED = "CONSORT_AGREED", FIFO = "CONSORT_FIFO", DURABLE = "CONSORT_DURABLE", LOGGED = "CONSORT_LOGGED",
        DIRECT = "CONSORT_DIRECT", CHAIN = "CONSORT_CHAIN",
        AUTO = "CONSORT_AUTO", SHM = "CONSORT_SHM", TCP = "CONSORT_TCP", VERBS = "CONSORT_VERBS",
        ADAPTIVE = "CONSORT_ADAPTIVE", SPIN = "CONSORT_SPIN", BLOCK = "CONSORT_BLOCK",
        DATA = "CONSORT_DATA", WITNESS = "CONSORT_WITNESS",
        ASK_STATUS = "CONSORT_ASK_STATUS", ASK_EXPLAIN = "CONSORT_ASK_EXPLAIN",
        LOCAL = "CONSORT_LOCAL", LINEARIZABLE = "CONSORT_LINEARIZABLE",
        FROM_INDEX = "CONSORT_FROM_INDEX", FROM_STAMP = "CONSORT_FROM_STAMP",
    }
    for status in Status::ALL {
        constant(status.name().to_str().unwrap(), status as u32);
    }
    all
}

fn written(name: &str, text: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&source, text).unwrap();
    source
}

/// Which of two sets lacks what of the other.
pub(crate) fn same<T: Ord + std::fmt::Debug>(header: &BTreeSet<T>, library: &BTreeSet<T>) {
    let (more, less): (Vec<_>, Vec<_>) =
        (header.difference(library).collect(), library.difference(header).collect());
    assert!(
        more.is_empty() && less.is_empty(),
        "in the header alone: {more:?}; in the library alone: {less:?}"
    );
}

#[test]
fn a_c_compiler_finds_every_size_offset_and_constant_where_the_library_has_it() {
    let mut source = String::from("#include <consort.h>\n#include <stdio.h>\nint main(void)\n{\n");
    let mut line = |name: String, value: String| {
        writeln!(source, "    printf(\"%s=%lu\\n\", \"{name}\", (unsigned long)({value}));").unwrap();
    };
    for (name, fields) in header::structs() {
        line(format!("{name} size"), format!("sizeof({name})"));
        for field in fields {
            line(format!("{name} {field}"), format!("offsetof({name}, {field})"));
        }
    }
    for name in header::constants() {
        line(name.clone(), name);
    }
    source += "    return 0;\n}\n";
    for (file, of) in [("layout.c", Build::Plain), ("layout.cpp", Build::Plain)] {
        let program = compile(&written(file, &source), of);
        let output = Command::new(program).env_remove("LD_LIBRARY_PATH").output().unwrap();
        let output = String::from_utf8(output.stdout).unwrap();
        let seen = output.lines().map(|line| {
            let (name, value) = line.split_once('=').unwrap();
            (name.to_owned(), value.parse::<usize>().unwrap())
        });
        let seen: BTreeSet<_> = seen.collect();
        assert!(seen.len() > 100, "the header was not understood: {seen:?}");
        same(&seen, &implemented().into_iter().collect());
    }
}

/// The functions of the sources, with their parameters' types as C has them; `consort_? *` is any handle.
fn defined() -> BTreeMap<String, (String, Vec<String>)> {
    let mut all = BTreeMap::new();
    for file in std::fs::read_dir(here().join("src")).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        for part in text.split("    fn consort_").skip(1) {
            let (name, rest) = part.split_once('(').unwrap();
            let (parameters, rest) = rest.split_once(')').unwrap();
            let result = match rest.split_once('{').unwrap().0.trim() {
                "" => "consort_status",
                "-> *const c_char" => "const char *",
                other => panic!("{name} gives {other}"),
            };
            let parameters = parameters.split(',').map(str::trim).filter(|it| !it.is_empty());
            let types = parameters.map(|it| in_c(it.split_once(':').unwrap().1.trim()));
            let mut types: Vec<_> = types.collect();
            if types.is_empty() {
                types.push("void".to_owned());
            }
            if name == "status_name" {
                types = vec!["consort_status".to_owned()];
            }
            all.insert(format!("consort_{name}"), (result.to_owned(), types));
        }
    }
    all
}

/// `CamelCase` as `consort_camel_case`.
fn snake(name: &str) -> String {
    let mut snake = String::from("consort");
    for character in name.chars() {
        if character.is_uppercase() {
            snake.push('_');
        }
        snake.extend(character.to_lowercase());
    }
    snake
}

fn in_c(rust: &str) -> String {
    if let Some(of) = rust.strip_prefix("Out<").and_then(|it| it.strip_suffix('>')) {
        return format!("{} *", in_c(of)).replace("* *", "**");
    }
    if let Some(of) = rust.strip_prefix("InOut<").and_then(|it| it.strip_suffix('>')) {
        return format!("{} *", in_c(of));
    }
    if let Some(of) = rust.strip_prefix("In<").and_then(|it| it.strip_suffix('>')) {
        return format!("const {} *", in_c(of));
    }
    match rust {
        "u8" => "uint8_t".into(),
        "u32" => "uint32_t".into(),
        "u64" => "uint64_t".into(),
        "i32" => "int".into(),
        "i64" => "int64_t".into(),
        "usize" => "size_t".into(),
        "Text" => "const char *".into(),
        "Context" => "void *".into(),
        "Handle" => "consort_? *".into(),
        "ReadFn" => "consort_read_fn".into(),
        "DoneFn" => "consort_done_fn".into(),
        other => snake(other),
    }
}

#[test]
fn every_function_takes_what_the_header_says() {
    const HANDLES: [&str; 9] =
        ["node", "group", "outcome", "replica", "pending", "replies", "log", "writer", "reader"];
    let of_header = header::functions().into_iter().map(|(name, (result, parameters))| {
        let types = parameters.iter().map(|parameter| {
            let parameter = parameter.as_str();
            let bare = match parameter.rfind(['*', ' ']) {
                Some(at) if parameter != "void" => parameter[..=at].trim(),
                _ => parameter,
            };
            let mut bare = bare.replace("const void *", "const uint8_t *");
            for handle in HANDLES {
                bare = match bare.strip_prefix(&format!("consort_{handle} ")) {
                    Some(stars) => format!("consort_? {stars}"),
                    None => bare,
                };
            }
            bare
        });
        (name, (result, types.collect::<Vec<_>>()))
    });
    let of_header: BTreeSet<_> = of_header.collect();
    assert!(of_header.len() > 50, "the header was not understood: {of_header:?}");
    same(&of_header, &defined().into_iter().collect());
}

/// A library's global symbols, of the table that `which` has nm list, are the header's functions.
pub(crate) fn has_only_the_headers_functions(which: &str, library: &Path) {
    let output = Command::new("nm").args([which, "--defined-only"]).arg(library).output().unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    let defined = output.lines().filter_map(|line| line.split_whitespace().nth(2)).map(str::to_owned);
    same(&header::functions().into_keys().collect(), &defined.collect());
}

#[test]
fn the_library_exports_the_headers_functions_and_nothing_else() {
    has_only_the_headers_functions("--dynamic", &library().join("libconsort.so"));

    let output = Command::new("readelf").arg("-d").arg(library().join("libconsort.so")).output().unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.lines().any(|line| line.contains("(SONAME)") && line.contains("[libconsort.so.0]")),
        "{output}"
    );
}

#[test]
fn the_header_and_the_library_are_of_one_version() {
    let text = std::fs::read_to_string(here().join("include/consort.h")).unwrap();
    let part = |name: &str| {
        let at = text.find(&format!("#define CONSORT_VERSION_{name} ")).unwrap();
        text[at..].lines().next().unwrap().rsplit(' ').next().unwrap().to_owned()
    };
    assert_eq!([part("MAJOR"), part("MINOR"), part("PATCH")].join("."), env!("CARGO_PKG_VERSION"));
}

/// For later versions: what programs were compiled against must stay as it is. Compares what the header declares, by way of a library of its
/// functions without a body, with what it declared when the baseline was taken.
#[test]
fn programs_compiled_against_the_baseline_still_work() {
    if !has("abidw", "abigail-tools") {
        return;
    }
    let mut source = String::from("#include <consort.h>\n#include <stdlib.h>\n");
    for (name, (result, parameters)) in header::functions() {
        writeln!(source, "{result} {name}({})\n{{\n    abort();\n}}", parameters.join(", ")).unwrap();
    }
    let source = written("declared.c", &source);
    let made = source.with_extension("so");
    let mut compiler = Command::new("gcc");
    compiler.args([
        "-std=c99",
        "-g",
        "-shared",
        "-fPIC",
        "-Wno-unused-parameter",
        "-Wl,-soname,libconsort.so.0",
    ]);
    compiler.arg("-I").arg(here().join("include")).arg(&source).arg("-o").arg(&made);
    assert!(compiler.status().unwrap().success());

    let baseline = here().join("abi/libconsort.so.0.abi");
    if std::env::var_os("CONSORT_ABI_BLESS").is_some() {
        let mut dump = Command::new("abidw");
        dump.args(["--no-corpus-path", "--no-comp-dir-path", "--short-locs", "--out-file"])
            .arg(&baseline)
            .arg(&made);
        assert!(dump.status().unwrap().success());
    }
    let output = Command::new("abidiff").arg(&baseline).arg(&made).output().unwrap();
    assert!(
        output.status.success(),
        "the ABI changed. If it only grew, take a new baseline: CONSORT_ABI_BLESS=1 cargo test -p consort-capi baseline. If programs \
         would break, the soname has to change too (build.rs).\n{}",
        String::from_utf8_lossy(&output.stdout)
    );
}
