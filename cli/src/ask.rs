//! `consort status` and `consort explain`: how a running member stands, and what it waits for. The member answers in JSON;
//! here it becomes tables and sentences. What an answer lacks is shown as `–`: the member may be of another release.

use std::fmt::Write as _;
use std::io::Write as _;

use comfy_table::Table;
use consort::object::StateDigest;
use consort::{AskError, Question};
use serde_json::Value;

use crate::args::AskArgs;
use crate::failure::Failure;
use crate::node::read_key;

/// Shows how a member stands.
///
/// # Errors
/// It doesn't answer.
pub(crate) fn status(args: &AskArgs) -> Result<(), Failure> {
    answer(args, Question::Status, status_text)
}

/// Shows what a member waits for.
///
/// # Errors
/// It doesn't answer.
pub(crate) fn explain(args: &AskArgs) -> Result<(), Failure> {
    answer(args, Question::Explain, explain_text)
}

/// Asks, and prints the answer as it is or as `told` tells it.
fn answer(args: &AskArgs, question: Question, told: fn(&Value) -> String) -> Result<(), Failure> {
    let key = args.key_file.as_deref().map(read_key).transpose()?;
    let text = consort::ask(args.address, key.as_ref(), question, args.within).map_err(|e| refused(&e))?;
    let shown = if args.json {
        format!("{text}\n")
    } else {
        let answer = serde_json::from_str(&text).map_err(|error| {
            Failure::start(
                format!("{} answers what is no JSON: {error}", args.address),
                "ask with the release that the member runs, or with --json to see the answer",
            )
        })?;
        told(&answer)
    };
    let mut out = std::io::stdout().lock();
    out.write_all(shown.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|cause| Failure::stream("write", "standard output", cause))
}

fn refused(error: &AskError) -> Failure {
    let remedy = match error {
        AskError::Unreached { .. } => "give the --listen address of a member that runs",
        AskError::Late { .. } => "give a longer --within, or ask another member",
        AskError::Refused { .. } => {
            "give the group's secret with --key-file if it has one, and see that this is a member's --listen address"
        }
        _ => "ask again, or ask another member",
    };
    Failure::start(error.to_string(), remedy)
}

/// A value as people read it.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => "–".to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::UTF8_FULL_CONDENSED);
    table.set_header(header);
    table
}

fn status_text(answer: &Value) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a string can't fail.
        let _ = writeln!(text, "{name:<18}{value}");
    };
    line(
        "node",
        format!(
            "{} ({}), incarnation {}, of cluster {}",
            plain(&answer["node"]),
            plain(&answer["role"]),
            plain(&answer["incarnation"]),
            plain(&answer["cluster"])
        ),
    );
    line("phase", plain(&answer["phase"]));
    line("fabric", format!("{}, guarantee {}", plain(&answer["fabric"]), plain(&answer["guarantee"])));
    for (name, key) in [("joining", "joining"), ("leaving", "leaving"), ("waits for", "waiting")] {
        if !list(&answer[key]).is_empty() {
            line(name, plain(&answer[key]));
        }
    }
    let view = &answer["view"];
    if view.is_null() {
        line("view", "none yet".to_owned());
    } else {
        let members = list(&view["members"]);
        line("view", format!("{} of {} members", plain(&view["view"]), members.len()));
        line("majority", plain(&view["majority"]));
        line("may lose at once", plain(&view["may_lose_at_once"]));
        let mut shown = table(&["member", "role", "address", "fabric", "reached", "suspected", "engine"]);
        for member in members {
            let engine = match member["engine_still_ms"].as_u64() {
                Some(0) => "moves".to_owned(),
                Some(still) => format!("still for {still} ms"),
                None => plain(&Value::Null),
            };
            let cells =
                ["node", "role", "address", "fabric", "reached", "suspected"].map(|key| plain(&member[key]));
            shown.add_row(cells.into_iter().chain([engine]));
        }
        let _ = writeln!(text, "{shown}");
    }
    let shards = list(&view["shards"]);
    if shards.len() > 1 {
        let mut shown = table(&["shard", "members", "learners", "session since view"]);
        for shard in shards {
            let members = if shard["lost"] == true {
                "lost, with its state".to_owned()
            } else {
                plain(&shard["members"])
            };
            let [name, learners, since] = ["shard", "learners", "since"].map(|key| plain(&shard[key]));
            shown.add_row([name, members, learners, since]);
        }
        let _ = writeln!(text, "{shown}");
    }
    for lost in list(&answer["lost"]) {
        let [node, why, ago] = ["node", "why", "ago_ms"].map(|key| plain(&lost[key]));
        let _ = writeln!(text, "lost: member {node}, {ago} ms ago: {why}");
    }
    for session in list(&answer["sessions"]) {
        let (view, delivered) = (plain(&session["view"]), plain(&session["delivered"]));
        let wedged = if session["wedged"] == true { ", wedged for the next view" } else { "" };
        let of = session["shard"].as_str().filter(|shard| *shard != "main");
        let of = of.map(|shard| format!("{shard}, ")).unwrap_or_default();
        let _ = writeln!(text, "{of}session of view {view}: {delivered} delivered{wedged}");
        const COUNTERS: [&str; 6] = ["node", "promise", "received", "stable", "delivered", "released"];
        let mut shown = table(&["sender", "promise", "received", "stable", "delivered", "released"]);
        for sender in list(&session["senders"]) {
            shown.add_row(COUNTERS.map(|key| plain(&sender[key])));
        }
        let _ = writeln!(text, "{shown}");
        if !list(&session["digests"]).is_empty() {
            let mut shown = table(&["replica", "digest of its state", "number"]);
            for digest in list(&session["digests"]) {
                let [digest_of, number] = digest_cells(&digest["word"]);
                shown.add_row([plain(&digest["node"]), digest_of, number]);
            }
            let _ = writeln!(text, "{shown}");
        }
        if !session["blocked"].is_null() {
            let _ = writeln!(text, "waits: {}", plain(&session["blocked"]));
        }
    }
    text
}

/// A digest and its number: those of replicas with the same number must be the same. As it is, if no replica of ours published it.
fn digest_cells(word: &Value) -> [String; 2] {
    let hex = word.as_str().and_then(|word| word.strip_prefix("0x"));
    match hex.and_then(|hex| u64::from_str_radix(hex, 16).ok()).and_then(StateDigest::from_word) {
        Some(StateDigest { ordinal, digest }) => [format!("{digest:09x}"), ordinal.to_string()],
        None => [plain(word), plain(&Value::Null)],
    }
}

fn explain_text(answer: &Value) -> String {
    let reasons = list(&answer["reasons"]);
    if reasons.is_empty() {
        return "nothing waits\n".to_owned();
    }
    reasons.iter().map(|it| format!("{}  {}\n", plain(&it["clause"]), plain(&it["what"]))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reasons_are_told_one_a_line() {
        let answer = json!({"node": 1, "reasons": [
            {"clause": "V1", "what": "too few"}, {"clause": "V9", "what": "it stands still"},
        ]});
        assert_eq!(explain_text(&answer), "V1  too few\nV9  it stands still\n");
        assert_eq!(explain_text(&json!({"node": 1, "reasons": []})), "nothing waits\n");
    }

    #[test]
    fn a_status_without_a_view_is_told_too() {
        let text = status_text(&json!({"node": 3, "phase": "founding", "view": null, "waiting": ["node 2"]}));
        for words in ["3 (–)", "founding", "none yet", "waits for         node 2"] {
            assert!(text.contains(words), "{words:?} in {text}");
        }
    }

    #[test]
    fn members_and_frontiers_are_tables() {
        let text = status_text(&json!({
            "node": 1, "phase": "running",
            "view": {"view": 7, "majority": 2, "may_lose_at_once": 1, "members": [
                {"node": 1, "role": "data", "address": "[::1]:1", "reached": true, "suspected": false, "engine_still_ms": 0},
                {"node": 2, "role": "data", "address": "[::1]:2", "reached": false, "suspected": true, "engine_still_ms": 4200},
            ]},
            "lost": [{"node": 3, "incarnation": "5", "why": "it was killed", "ago_ms": 1500}],
            "sessions": [{"view": 7, "wedged": true, "delivered": 12, "blocked": "node 2 is slow", "senders": [
                {"node": 2, "promise": 9, "received": 8, "stable": 7, "delivered": 6, "released": 5},
            ], "digests": [
                {"node": 1, "word": format!("{:#018x}", 1_u64 << 63 | 12 << 34 | 0xabc)},
                {"node": 2, "word": "0x0000000000000007"},
            ]}],
        }));
        for words in [
            "7 of 2 members",
            "still for 4200 ms",
            "lost: member 3, 1500 ms ago: it was killed",
            "12 delivered, wedged",
            "waits: node 2 is slow",
            "000000abc           ┆ 12",
            "0x0000000000000007  ┆ –",
        ] {
            assert!(text.contains(words), "{words:?} in {text}");
        }
    }
}
