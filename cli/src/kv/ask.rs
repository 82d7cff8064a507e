//! `consort kv put`, `get`, `delete` and `watch`: one request each, and what is printed of the answer.

use std::io::Write as _;

use serde_json::{Value, json};

use super::client::{Client, next};
use super::wire::{Answer, Request};
use crate::args::{KvDeleteArgs, KvGetArgs, KvPutArgs, KvWatchArgs};
use crate::failure::Failure;

/// Puts a value.
///
/// # Errors
/// The store can't be asked, or has another version.
pub(super) fn put(args: &KvPutArgs) -> Result<(), Failure> {
    let KvPutArgs { key, value, if_version, to } = args;
    let request = Request::Put { key: key.clone(), value: value.clone(), if_version: *if_version };
    match Client::new(&to.server, to.within).ask(&request)? {
        Answer::Done { version } => {
            print(to.json, &format!("version {version}"), || json!({"key": key, "version": version}))
        }
        other => Err(no(key, &other)),
    }
}

/// Gets a value.
///
/// # Errors
/// The store can't be asked, or hasn't got the key.
pub(super) fn get(args: &KvGetArgs) -> Result<(), Failure> {
    let KvGetArgs { key, local, to } = args;
    match Client::new(&to.server, to.within).ask(&Request::Get { key: key.clone(), local: *local })? {
        Answer::Value { value, version } => {
            print(to.json, &value, || json!({"key": key, "value": value, "version": version}))
        }
        other => Err(no(key, &other)),
    }
}

/// Deletes a key.
///
/// # Errors
/// The store can't be asked, hasn't got the key, or has another version.
pub(super) fn delete(args: &KvDeleteArgs) -> Result<(), Failure> {
    let KvDeleteArgs { key, if_version, to } = args;
    match Client::new(&to.server, to.within)
        .ask(&Request::Delete { key: key.clone(), if_version: *if_version })?
    {
        Answer::Done { version } => print(
            to.json,
            &format!("deleted version {version}"),
            || json!({"key": key, "version": version, "deleted": true}),
        ),
        other => Err(no(key, &other)),
    }
}

/// Prints changes until the server or the reader goes away.
///
/// # Errors
/// That it did.
pub(super) fn watch(args: &KvWatchArgs) -> Result<(), Failure> {
    let mut client = Client::new(&args.to.server, args.to.within);
    let begun = client.ask(&Request::Watch { key: args.key.clone() })?;
    let Answer::Watching { now, here, shards } = begun else { return Err(odd(&begun)) };
    if args.key.is_none() && here.len() < shards {
        tracing::warn!(
            "this server has shards {here:?} of {shards}: changes of others are told at servers that have them"
        );
    }
    if let (Some(key), Some(now)) = (&args.key, now) {
        show(args, key, Some(&now.value), now.version)?;
    }
    let ended = |why: String| {
        Failure::lost(
            format!("the server tells no more changes: {why}"),
            "watch again, at another server with --server; changes in between are not told",
        )
    };
    let Some(mut stream) = client.into_stream() else { return Err(ended("no connection".to_owned())) };
    // A server that is there says so more often.
    let patience = Some(args.to.within.max(std::time::Duration::from_secs(5)));
    stream.get_ref().set_read_timeout(patience).map_err(|cause| ended(cause.to_string()))?;
    loop {
        match next(&mut stream).map_err(|cause| ended(cause.to_string()))? {
            Answer::Change { key, value, version } => show(args, &key, value.as_deref(), version)?,
            Answer::Restored { shard } => {
                let text = format!("shard {shard} came here whole: what changed before is not told");
                print(args.to.json, &text, || json!({"restored": shard}))?;
            }
            Answer::Failed { error, .. } => return Err(ended(error)),
            Answer::Elsewhere { .. } => {
                return Err(ended("it hasn't got the key's shard any more".to_owned()));
            }
            other => return Err(odd(&other)),
        }
    }
}

fn show(args: &KvWatchArgs, key: &str, value: Option<&str>, version: u64) -> Result<(), Failure> {
    let text = match value {
        Some(value) => format!("{key} {version} {value}"),
        None => format!("{key} {version} deleted"),
    };
    let deleted = value.is_none();
    print(args.to.json, &text, || json!({"key": key, "value": value, "version": version, "deleted": deleted}))
}

/// The store's answer is no.
fn no(key: &str, answer: &Answer) -> Failure {
    match answer {
        Answer::Absent => {
            Failure::not_so(format!("there is no key {key:?}"), "put it first, or ask for another")
        }
        Answer::Conflict { version: 0 } => Failure::not_so(
            format!("there is no key {key:?}, so no such version of it"),
            "give --if-version 0 to put it if it isn't there",
        ),
        Answer::Conflict { version } => Failure::not_so(
            format!("{key:?} has version {version}"),
            format!("get it, and give --if-version {version} if the change is still wanted"),
        ),
        other => odd(other),
    }
}

fn odd(answer: &Answer) -> Failure {
    Failure::lost(
        format!("a server answers what wasn't asked: {answer:?}"),
        "run the same release everywhere",
    )
}

fn print(as_json: bool, text: &str, object: impl FnOnce() -> Value) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let written = if as_json { writeln!(out, "{}", object()) } else { writeln!(out, "{text}") };
    written.and_then(|()| out.flush()).map_err(|cause| Failure::stream("write", "standard output", cause))
}
