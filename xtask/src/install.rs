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
const SONAME: &str = "libconsort.so.0";

/// Builds the library in a cargo profile, and installs it.
pub(crate) fn install(workspace: &Workspace, prefix: &Path, profile: &str) -> Result<(), Trouble> {
    let package = MetadataCommand::new()
        .manifest_path(workspace.root.join("Cargo.toml"))
        .no_deps()
        .exec()
        .ok()
        .and_then(|all| all.packages.into_iter().find(|it| it.name.as_str() == "consort-capi"))
        .ok_or_else(|| Trouble::Found("the workspace has no consort-capi".to_owned()))?;
    let version = package.version.to_string();
    let mut build = workspace.cargo();
    build.args(["build", "--package", "consort-capi", "--profile", profile]);
    build.arg("--target-dir").arg(&workspace.target);
    quiet(build)?;
    // Cargo's name for the profile `dev` is older than profiles.
    let built = workspace.target.join(if profile == "dev" { "debug" } else { profile });
    let source = workspace.root.join("capi");
    let filled = |file: &str| -> io::Result<String> {
        let text = fs::read_to_string(source.join("package").join(file))?;
        let repository = package.repository.as_deref().unwrap_or_default();
        Ok(text.replace("@VERSION@", &version).replace("@REPOSITORY@", repository))
    };
    let put = || -> io::Result<()> {
        let (lib, include) = (prefix.join("lib"), prefix.join("include"));
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
            narrow(&from, to, &beside).or_else(|why| {
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
            prefix.display()
        ))
    })?;
    println!("installed libconsort {version} to {}", prefix.display());
    println!(
        "    PKG_CONFIG_PATH={} where pkg-config doesn't look there by itself;",
        prefix.join("lib/pkgconfig").display()
    );
    println!(
        "    `ldconfig` as root, or LD_LIBRARY_PATH={}, for programs to find it",
        prefix.join("lib").display()
    );
    Ok(())
}

/// Removes what is there, and makes it anew.
fn replace(at: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    match fs::remove_file(at) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => make(at),
    }
}
