//! Puts libconsort where C programs look for it: the library under its soname, the header, and what pkg-config and CMake ask for.
//!
//! ```text
//! PREFIX/include/consort.h
//! PREFIX/lib/libconsort.so.0.1.0    libconsort.so.0 → it, for programs that run    libconsort.so → that, for the linker
//! PREFIX/lib/libconsort.a    has no other global symbols than the API's, see `archive`
//! PREFIX/lib/pkgconfig/consort.pc
//! PREFIX/lib/cmake/Consort/ConsortConfig.cmake, ConsortConfigVersion.cmake
//! ```

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use cargo_metadata::MetadataCommand;

use crate::archive::narrow;
use crate::shell::{Trouble, Workspace, quiet};

/// The name that build.rs of the crate writes into the library.
pub(crate) const SONAME: &str = "libconsort.so.0";

/// What was installed.
pub(crate) struct Installed {
    pub(crate) version: String,
    pub(crate) repository: String,
}

/// Builds the library in a cargo profile, and installs it: to the prefix, or to where that is below `destdir`. Nothing that is installed has the
/// prefix in it.
pub(crate) fn install(
    workspace: &Workspace,
    prefix: &Path,
    destdir: Option<&Path>,
    profile: &str,
) -> Result<Installed, Trouble> {
    let package = MetadataCommand::new()
        .manifest_path(workspace.root.join("Cargo.toml"))
        .no_deps()
        .exec()
        .ok()
        .and_then(|all| all.packages.into_iter().find(|it| it.name.as_str() == "consort-capi"))
        .ok_or_else(|| Trouble::Found("the workspace has no consort-capi".to_owned()))?;
    let version = package.version.to_string();
    let repository = package.repository.unwrap_or_default();
    let mut build = workspace.cargo();
    // The two alone: cargo optimizes nothing across crates (`lto`) for a library that is built for Rust programs too.
    build.args(["rustc", "--package", "consort-capi", "--lib", "--crate-type", "cdylib,staticlib"]);
    build.args(["--profile", profile]);
    build.arg("--target-dir").arg(&workspace.target);
    quiet(build)?;
    // Cargo's name for the profile `dev` is older than profiles.
    let built = workspace.target.join(if profile == "dev" { "debug" } else { profile });
    let source = workspace.root.join("capi");
    let filled = |file: &str| -> io::Result<String> {
        let text = fs::read_to_string(source.join("package").join(file))?;
        Ok(text.replace("@VERSION@", &version).replace("@REPOSITORY@", &repository))
    };
    let to = match destdir {
        Some(directory) => directory.join(prefix.strip_prefix("/").unwrap_or(prefix)),
        None => prefix.to_owned(),
    };
    let put = || -> io::Result<()> {
        let (lib, include) = (to.join("lib"), to.join("include"));
        let (pkgconfig, cmake) = (lib.join("pkgconfig"), lib.join("cmake/Consort"));
        for directory in [&include, &pkgconfig, &cmake] {
            fs::create_dir_all(directory)?;
        }
        fs::copy(source.join("include/consort.h"), include.join("consort.h"))?;
        let full = format!("libconsort.so.{version}");
        // Not written over: a program may run from it.
        replace(&lib.join(&full), |to| fs::copy(built.join("libconsort_c.so"), to).map(drop))?;
        replace(&lib.join(SONAME), |to| symlink(&full, to))?;
        replace(&lib.join("libconsort.so"), |to| symlink(SONAME, to))?;
        replace(&lib.join("libconsort.a"), |to| {
            let from = built.join("libconsort_c.a");
            // Another process may do the same at the same time.
            let beside = built.join(format!("libconsort-{}", std::process::id()));
            narrow(&built.join("libconsort_c.so"), &from, to, &beside).or_else(|why| {
                println!("libconsort.a has the symbols of Rust's own libraries too, which others of a program may collide with: {why}");
                fs::copy(&from, to).map(drop)
            })
        })?;
        fs::write(pkgconfig.join("consort.pc"), filled("consort.pc.in")?)?;
        fs::write(cmake.join("ConsortConfig.cmake"), filled("ConsortConfig.cmake")?)?;
        fs::write(cmake.join("ConsortConfigVersion.cmake"), filled("ConsortConfigVersion.cmake.in")?)
    };
    put().map_err(|cause| {
        Trouble::Found(format!(
            "can't install to {}: {cause}; take another --prefix, or ask its owner",
            to.display()
        ))
    })?;
    println!("installed libconsort {version} to {}", to.display());
    let installed = Installed { version, repository };
    if destdir.is_some() {
        return Ok(installed);
    }
    println!(
        "    PKG_CONFIG_PATH={} where pkg-config doesn't look there by itself;",
        prefix.join("lib/pkgconfig").display()
    );
    println!(
        "    `ldconfig` as root, or LD_LIBRARY_PATH={}, for programs to find it",
        prefix.join("lib").display()
    );
    Ok(installed)
}

/// Removes what is there, and makes it anew.
fn replace(at: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    match fs::remove_file(at) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => make(at),
    }
}
