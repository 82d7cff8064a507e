//! Where measurements of the disk have their files: a directory that is gone when they are over, however they end.
//!
//! A destructor removes nothing if its process is killed. So the directory is another process's: the keeper makes it, waits
//! until the pipe from its parent closes, as it does on any end of the parent, and removes it. It removes only what it made. It is
//! in a process group of its own, for the keyboard's interrupt is for all processes of a group.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use crate::args::DiskArgs;
use crate::failure::Failure;
use crate::text;

/// What the directory's name begins with.
const PREFIX: &str = "consort-bench-";

/// File systems that are memory ([statfs(2)](https://man7.org/linux/man-pages/man2/statfs.2.html)), as they are called.
const MEMORY: [(u64, &str); 2] = [(0x0102_1994, "tmpfs"), (0x8584_58f6, "ramfs")];

/// How often removing is tried: members of a parent that was killed may write for a moment yet.
const TRIES: u32 = 200;
const BETWEEN: Duration = Duration::from_millis(20);

/// What the keeper says: where the directory is, or a failure's code, message and remedy.
type Kept = Result<PathBuf, (u8, String, String)>;

/// A directory for one measurement. Dropping it removes it.
pub(crate) struct Place {
    path: PathBuf,
    keeper: Child,
}

impl Place {
    /// A new one where `args` says, or in the working directory.
    ///
    /// # Errors
    /// That is no disk, or nothing can be made there.
    pub(crate) fn new(args: &DiskArgs) -> Result<Self, Failure> {
        let within = args.dir.as_deref().unwrap_or(Path::new("."));
        let within = within.canonicalize().map_err(|cause| Failure::file("use", within, cause))?;
        if !args.any_disk {
            refuse_memory(&within)?;
        }
        let refused = |cause: io::Error| {
            Failure::start(
                format!("can't start a process that keeps the directory: {cause}"),
                "check the limit on processes (ulimit -u) and free memory",
            )
        };
        let program = std::env::current_exe().map_err(refused)?;
        let mut keeper = Command::new(program)
            .arg("keep")
            .arg(&within)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(refused)?;
        let mut line = String::new();
        if let Some(said) = keeper.stdout.take() {
            BufReader::new(said).read_line(&mut line).map_err(refused)?;
        }
        // From here on it is ended on any path: who can't be asked anything more leaves.
        let mut place = Self { path: PathBuf::new(), keeper };
        match serde_json::from_str::<Kept>(&line) {
            Ok(Ok(path)) => place.path = path,
            Ok(Err((code, message, remedy))) => return Err(Failure::from_code(code, message, remedy)),
            Err(cause) => return Err(refused(cause.into())),
        }
        Ok(place)
    }

    /// A directory in it for one group or floor, which is gone when dropped.
    ///
    /// # Errors
    /// It can't be made.
    pub(crate) fn part(&self) -> Result<TempDir, Failure> {
        TempDir::new_in(&self.path).map_err(|cause| Failure::file("write in", &self.path, cause))
    }

    /// Waits until its file system has done all that it was told, removals included.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn flush(&self) -> Result<(), Failure> {
        let flushed = fs::File::open(&self.path).and_then(|it| Ok(rustix::fs::syncfs(it)?));
        flushed.map_err(|cause| Failure::file("flush", &self.path, cause))
    }

    /// Refuses if there is no room for so many bytes.
    ///
    /// # Errors
    /// There is less, or it can't be known.
    pub(crate) fn needs(&self, bytes: u64) -> Result<(), Failure> {
        let room = rustix::fs::statvfs(&self.path);
        let room = room.map_err(|cause| Failure::file("use", &self.path, cause.into()))?;
        let free = room.f_bavail.saturating_mul(room.f_frsize);
        if free >= bytes {
            return Ok(());
        }
        Err(Failure::usage(
            format!("the logs take {}, and there are {} free", text::bytes(bytes), text::bytes(free)),
            "give a smaller --log-size, fewer --members, or --dir on a disk with more room",
        ))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        // Fails only if it was waited for, which nobody else does. If it was killed, what it kept is left to this.
        let _ = self.keeper.wait();
        if !self.path.as_os_str().is_empty() {
            remove(&self.path);
        }
    }
}

/// On a file system in memory a flush is nothing, and figures of it are no figures of a disk.
fn refuse_memory(path: &Path) -> Result<(), Failure> {
    let system = rustix::fs::statfs(path).map_err(|cause| Failure::file("use", path, cause.into()))?;
    let kind = system.f_type.cast_unsigned() & 0xffff_ffff;
    match MEMORY.iter().find(|(magic, _)| *magic == kind) {
        None => Ok(()),
        Some((_, name)) => Err(Failure::usage(
            format!(
                "{} is no disk: its file system, {name}, is memory, where a flush costs nothing",
                path.display()
            ),
            "give --dir on a disk; or --any-disk to measure there all the same",
        )),
    }
}

/// Removes a directory and everything in it, and tries again while somebody still writes there.
fn remove(path: &Path) {
    for _ in 0..TRIES {
        match fs::remove_dir_all(path) {
            Ok(()) => return,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return,
            Err(_) => thread::sleep(BETWEEN),
        }
    }
    // Nobody but the user can do anything about it.
    let _ = writeln!(io::stderr(), "error: can't remove {}; remove it by hand", path.display());
}

/// The keeper: makes a directory in `within`, says where it is, and removes it when its parent is gone.
pub(crate) fn keep(within: &Path) -> ExitCode {
    let made = tempfile::Builder::new().prefix(PREFIX).tempdir_in(within);
    let (path, kept): (_, Kept) = match made {
        Ok(made) => {
            let path = made.keep();
            (Some(path.clone()), Ok(path))
        }
        Err(cause) => {
            let failure = Failure::file("write in", within, cause);
            (None, Err((failure.code(), failure.to_string(), failure.remedy().to_owned())))
        }
    };
    let mut out = io::stdout();
    let said = serde_json::to_string(&kept).map_err(io::Error::from);
    let said = said.and_then(|line| writeln!(out, "{line}").and_then(|()| out.flush()));
    if said.is_ok() {
        // Nothing is ever said; the end is what is waited for, and an error is one.
        let _ = io::stdin().lock().read_to_end(&mut Vec::new());
    }
    if let Some(path) = path {
        remove(&path);
    }
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_still_writes_is_removed_in_the_end() {
        let place = tempfile::tempdir().unwrap().keep();
        fs::create_dir_all(place.join("a/b")).unwrap();
        fs::write(place.join("a/b/c"), "d").unwrap();
        remove(&place);
        assert!(!place.exists());
        remove(&place);
    }

    #[test]
    fn memory_is_no_disk() {
        let shm = Path::new("/dev/shm");
        if rustix::fs::statfs(shm).is_ok_and(|it| it.f_type == 0x0102_1994) {
            let refused = refuse_memory(shm).unwrap_err();
            assert!(refused.to_string().contains("tmpfs") && refused.remedy().contains("--any-disk"));
        }
        assert!(refuse_memory(Path::new("/nowhere/at/all")).is_err());
    }
}
