//! Corosync's closed process groups: three hosts in network namespaces of their own, each with its Corosync and a client.
//!
//! This starts [`hub`], a process in a network namespace with a bridge; that starts three [`host`]s, each in a network namespace with an
//! address on the bridge, and in a mount namespace where the directories that Corosync writes to are its own. Nothing is made in the
//! machine's own namespaces, and all is gone with the processes. [`cpg`] is the client's library.
//!
//! Corosync runs as it does by itself, with real-time priority. Clients poll and yield. It is set as it comes, which is without encryption,
//! or tuned: links take packets of 9000 bytes, for which a setting says so to udpu (knet finds out), and more messages may be on the way
//! and sent in a turn of the token (`window_size`, `max_messages`).

mod cpg;
mod client;
pub(crate) mod hub;
pub(crate) mod host;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::child::{Talker, tied};
use crate::failure::Failure;
use crate::figures::{Figures, Quantiles};
use crate::plan::Plan;
use crate::servers;

/// How the hosts are set.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Setting {
    /// As `totem.transport` has it.
    knet: bool,
    tuned: bool,
}

pub(crate) const KNET: Setting = Setting { knet: true, tuned: false };
pub(crate) const UDPU: Setting = Setting { knet: false, tuned: false };
pub(crate) const KNET_TUNED: Setting = Setting { knet: true, tuned: true };
pub(crate) const UDPU_TUNED: Setting = Setting { knet: false, tuned: true };

/// What the hub is to do.
#[derive(Debug, Deserialize, Serialize)]
struct Task {
    setting: Setting,
    warmup: Duration,
    duration: Duration,
    patience: Duration,
}

/// A part of a run.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
struct Phase {
    /// In its messages, so that those of another part are told from them.
    number: u32,
    size: usize,
    /// Whether the first host sends one message at a time, or all send as many as Corosync takes.
    one_outstanding: bool,
    warmup: Duration,
    duration: Duration,
}

/// What a host saw of a part.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
struct Outcome {
    /// At the host that sends one at a time.
    latency: Option<Quantiles>,
    msgs_per_s: f64,
}

/// How a part went, from process to process.
type Said<T> = Result<T, (String, String)>;

fn said<T>(result: Result<T, Failure>) -> Said<T> {
    result.map_err(|failure| (failure.to_string(), failure.remedy().to_owned()))
}

fn heard<T>(said: Said<T>) -> Result<T, Failure> {
    said.map_err(|(message, remedy)| Failure::run(message, remedy))
}

/// Corosync's version.
///
/// # Errors
/// It or its library isn't installed, or this process may not make namespaces.
pub(crate) fn version() -> Result<String, Failure> {
    let version = servers::version("corosync", "-v")?;
    cpg::load()?;
    servers::program("ip")?;
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::run("hosts in network namespaces need root", "run it as root, or with sudo"));
    }
    Ok(version)
}

/// Measures.
///
/// # Errors
/// Namespaces can't be made, Corosync doesn't start or forms no group, or is gone.
pub(crate) fn measure(setting: Setting, plan: &Plan) -> Result<Figures, Failure> {
    let patience = plan.patience() * 3;
    let mut hub = Talker::start("the hosts' hub".to_owned(), &mut apart("corosync-hub")?, patience)?;
    let task = Task { setting, warmup: plan.warmup, duration: plan.duration, patience };
    hub.tell(&task)?;
    heard(hub.hear()?)
}

/// This program, as a process in namespaces of its own.
fn apart(part: &str) -> Result<std::process::Command, Failure> {
    let exe = std::env::current_exe()
        .map_err(|cause| Failure::io("find this program's own file", cause, "start it by its path"))?;
    let mut command = tied("unshare");
    command.args(["--net", "--mount", "--propagation", "private", "--"]).arg(exe).arg(part);
    Ok(command)
}
