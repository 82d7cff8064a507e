//! A member process: started by `demo` or `bench`, it takes its task and plays its part.
//!
//! It lives for its parent alone. It asks the kernel to be killed when the parent dies (and looks once more whether
//! the parent is still there, for it may have died just before); and when its standard input ends, for whatever
//! reason, it takes that as the order to leave.

use std::io::{self, BufRead};
use std::process::ExitCode;

use rustix::process::{Pid, Signal};

use crate::failure::Failure;
use crate::orders::{Said, Task};
use crate::parent::{self, Parent};

/// Runs a member process to its end.
pub(crate) fn run(parent: u32) -> ExitCode {
    match orphan_proof(parent).and_then(|()| serve()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let (message, remedy) = (failure.to_string(), failure.remedy().to_string());
            parent::say(&Said::Failed { code: failure.code(), message, remedy });
            ExitCode::from(&failure)
        }
    }
}

fn orphan_proof(parent: u32) -> Result<(), Failure> {
    let refused = |cause: io::Error| {
        Failure::start(
            format!("can't tie this process to its parent: {cause}"),
            "run `consort demo` or `consort bench`",
        )
    };
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(|e| refused(e.into()))?;
    let actual = rustix::process::getppid().map(Pid::as_raw_nonzero).map(|pid| pid.get().unsigned_abs());
    if actual == Some(parent) {
        Ok(())
    } else {
        Err(refused(io::Error::other("the parent is not there any more")))
    }
}

fn serve() -> Result<(), Failure> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).map_err(|cause| Failure::stream("read", "the task", cause))?;
    let task: Task = serde_json::from_str(&line).map_err(|e| {
        Failure::usage(
            format!("no task on standard input: {e}"),
            "members are started by `consort demo` and `bench`",
        )
    })?;
    let mut parent = Parent::new();
    match task {
        Task::Demo(task) => crate::demo::member::run(&task, &mut parent),
        Task::Churn(task) => crate::demo::churn_member(&task, &mut parent),
        Task::Load(task) => crate::bench::member::run(&task, &mut parent),
        Task::Restart(task) => crate::bench::restart::member(&task, &mut parent),
        Task::Idle(task) => crate::bench::idle::member(&task, &mut parent),
        Task::Replicas(task) => crate::bench::replicas::member(&task, &mut parent),
        Task::Repair(task) => crate::bench::repair::member(&task, &mut parent),
        Task::Failover(task) => crate::bench::failover::member(&task, &mut parent),
        Task::Prey(task) => crate::bench::failover::prey(&task, &mut parent),
        Task::Join(task) => crate::bench::join::member(&task, &mut parent),
        Task::Sink(task) => crate::bench::join::sink(&task, &mut parent),
        Task::Floor(task) => crate::bench::floor::run(&task, &mut parent),
    }
}
