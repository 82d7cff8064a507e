//! Finds what a step needs beyond the pinned toolchain, and installs it where that touches nothing of the user's:
//! cargo's own tools go to `target/tools`, built without optimisation because they run for seconds only.

use std::path::PathBuf;
use std::process::Command;

use crate::shell::{Trouble, Workspace, quiet, succeeds};

/// A cargo subcommand that is installed when it is missing.
pub(crate) struct Tool {
    /// The name of the crate and of the executable.
    name: &'static str,
    /// The version that was tried with this repository.
    version: &'static str,
    /// More arguments for `cargo install`.
    features: &'static [&'static str],
}

/// Licences, bans, sources. About two minutes of processor time to build, without optimisation.
pub(crate) const DENY: Tool =
    Tool { name: "cargo-deny", version: "0.20.2", features: &["--no-default-features"] };

/// Drives libFuzzer.
pub(crate) const FUZZ: Tool = Tool { name: "cargo-fuzz", version: "0.13.2", features: &[] };

impl Tool {
    /// The path of the executable, found or freshly installed.
    pub(crate) fn ready(&self, workspace: &Workspace) -> Result<PathBuf, Trouble> {
        let found = PathBuf::from(self.name);
        if answers(workspace, &found) {
            return Ok(found);
        }
        let root = workspace.target.join("tools");
        let installed = root.join("bin").join(self.name);
        if answers(workspace, &installed) {
            return Ok(installed);
        }
        println!("    {} is not here: installing {} into {}", self.name, self.version, root.display());
        let mut install = workspace.cargo();
        install.args(["install", "--quiet", "--locked", "--debug", self.name, "--version", self.version]);
        install.args(self.features).arg("--root").arg(&root);
        install.arg("--target-dir").arg(root.join("build")).env("CARGO_PROFILE_DEV_DEBUG", "0");
        quiet(install)?;
        Ok(installed)
    }
}

fn answers(workspace: &Workspace, executable: &PathBuf) -> bool {
    let mut command = workspace.command(executable);
    command.arg("--version");
    succeeds(command)
}

/// Makes the nightly toolchain ready, with `components`; says why where it can't be had.
pub(crate) fn nightly(workspace: &Workspace, components: &[&str]) -> Result<(), String> {
    let mut version = workspace.nightly_cargo();
    version.arg("--version");
    if !succeeds(version) {
        println!("    no nightly toolchain: installing it");
        let mut install = rustup(workspace);
        install.args(["toolchain", "install", "nightly", "--profile", "minimal", "--no-self-update"]);
        quiet(install).map_err(|trouble| without("a nightly toolchain", &trouble))?;
    }
    if components.is_empty() {
        return Ok(());
    }
    let mut list = rustup(workspace);
    list.args(["component", "list", "--toolchain", "nightly", "--installed"]);
    let have = quiet(list).map_err(|trouble| without("rustup", &trouble))?;
    let lacking = components.iter().filter(|wanted| !have.lines().any(|line| line.starts_with(**wanted)));
    let lacking: Vec<_> = lacking.collect();
    if !lacking.is_empty() {
        let mut add = rustup(workspace);
        add.args(["component", "add", "--toolchain", "nightly"]).args(&lacking);
        quiet(add).map_err(|trouble| without("components of the nightly toolchain", &trouble))?;
    }
    Ok(())
}

fn rustup(workspace: &Workspace) -> Command {
    let mut command = workspace.command("rustup");
    command.env_remove("RUSTUP_TOOLCHAIN");
    command
}

fn without(what: &str, trouble: &Trouble) -> String {
    format!("{what} can't be had here ({trouble}); it needs rustup and its server")
}
