//! Rounds: in each, for every peer, Consort and then the peer, so that what the machine does meanwhile falls on both.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::args::Args;
use crate::consort::{self, Reference};
use crate::failure::Failure;
use crate::figures::Figures;
use crate::peers::Peer;
use crate::plan::Plan;
use crate::promise::Against;

/// What came of one peer.
pub(crate) struct PeerRuns {
    pub(crate) peer: &'static Peer,
    /// Its version.
    pub(crate) version: String,
    /// Consort's run and the peer's after it.
    pub(crate) pairs: Vec<(Figures, Figures)>,
    /// Why it did not run, or not to the end.
    pub(crate) not_run: Option<String>,
}

/// What came of all.
pub(crate) struct Measured {
    pub(crate) consort_version: String,
    /// Consort's runs, of each kind that a peer is set beside.
    pub(crate) references: Vec<(Against, Reference)>,
    pub(crate) peers: Vec<PeerRuns>,
    /// Consort did not run, at least once.
    pub(crate) consort_failed: bool,
}

/// Tells of progress, or of an error.
pub(crate) fn tell(what: &str) {
    // Nobody to tell it to is no reason to stop.
    let _ = writeln!(std::io::stderr().lock(), "{what}");
}

/// Measures.
///
/// # Errors
/// Consort isn't there, or this is interrupted. What doesn't run is in the result.
pub(crate) fn measure(args: &Args, peers: &[&'static Peer]) -> Result<Measured, Failure> {
    let consort = consort::find(args.consort.as_deref())?;
    let consort_version = consort::version(&consort)?;
    // Removed when this is left; an interrupt leaves it, too, after the run that it falls in.
    let disk = scratch(&args.disk)?;
    let memory = scratch(Path::new("/dev/shm"))?;
    let plan = Plan {
        warmup: args.warmup,
        duration: args.duration,
        consort,
        disk: disk.path().to_owned(),
        memory: memory.path().to_owned(),
    };
    let interrupted = on_interrupt()?;
    let mut measured = Measured {
        consort_version,
        references: Vec::new(),
        peers: peers.iter().map(|peer| PeerRuns::new(peer)).collect(),
        consort_failed: false,
    };
    for round in 1..=args.runs {
        for runs in &mut measured.peers {
            if runs.not_run.is_some() {
                continue;
            }
            tell(&format!("round {round} of {}: Consort, then {}", args.runs, runs.peer.title));
            let reference = consort::reference(runs.peer.against, &plan);
            // Programs of the same terminal are interrupted, too, and fail: that is not their failure.
            stop_if(&interrupted)?;
            let reference = match reference {
                Ok(reference) => reference,
                Err(failure) => {
                    measured.consort_failed = true;
                    runs.fail("Consort, beside it", &failure);
                    continue;
                }
            };
            measured.references.push((runs.peer.against, reference));
            let figures = (runs.peer.measure)(&plan);
            stop_if(&interrupted)?;
            match figures {
                Ok(figures) => runs.pairs.push((reference.figures, figures)),
                Err(failure) => runs.fail(runs.peer.title, &failure),
            }
        }
    }
    Ok(measured)
}

impl PeerRuns {
    fn new(peer: &'static Peer) -> Self {
        let mut runs = Self { peer, version: String::new(), pairs: Vec::new(), not_run: None };
        match (peer.version)() {
            Ok(version) => runs.version = version,
            Err(failure) => runs.fail(runs.peer.title, &failure),
        }
        runs
    }

    fn fail(&mut self, who: &str, failure: &Failure) {
        tell(&format!("{who}: {failure}\n  {}", failure.remedy()));
        self.not_run =
            Some(if who == self.peer.title { failure.to_string() } else { format!("{who}: {failure}") });
    }
}

fn scratch(place: &Path) -> Result<tempfile::TempDir, Failure> {
    tempfile::Builder::new()
        .prefix("consort-peers-")
        .tempdir_in(place)
        .map_err(|cause| Failure::file("make a directory in", place, cause))
}

/// A flag that an interrupt sets. Nothing else happens then, so that processes and files are cleared away in the usual manner.
fn on_interrupt() -> Result<Arc<AtomicBool>, Failure> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&flag))
            .map_err(|cause| Failure::io("listen for interrupts", cause, "try again"))?;
    }
    Ok(flag)
}

fn stop_if(interrupted: &AtomicBool) -> Result<(), Failure> {
    // Relaxed: the flag is all that there is to be seen.
    if interrupted.load(Ordering::Relaxed) {
        return Err(Failure::run("interrupted", "run it again for a report"));
    }
    Ok(())
}
