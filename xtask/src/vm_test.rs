//! `cargo xtask vm-test`: `pinless teardown` on a kernel with cgroup v2 only, in a virtual machine.
//!
//! Debian's cloud kernel boots in QEMU, with software emulation, so that it works anywhere, from an
//! initramfs of our own programs and one shell script. Kernel and shell are downloaded into
//! `target/vm`, and not installed.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// What runs as the first process of the machine, and judges.
const INIT: &str = include_str!("vm_test/init.sh");
/// The line with which it says that all went well.
const PASSED: &str = "vm-test: passed";
const SECONDS_MAX: &str = "170";
const QEMU: &str = "qemu-system-x86_64";
const QEMU_PACKAGE: &str = "qemu-system-x86";
const PROGRAMS: [&str; 3] = ["pinless", "examples/leaker", "examples/page_keeper"];

/// Options of the test.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Have apt-get install QEMU if it is missing (as root)
    #[arg(long)]
    install: bool,
}

/// Why there is no result.
enum Ended {
    /// This machine lacks something, and that is no failure.
    Skipped(String),
    Failed(String),
}

type Done<T> = Result<T, Ended>;

/// Boots the machine, and tells how the tests in it went.
pub(crate) fn run(args: &Args) -> ExitCode {
    match test(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Ended::Skipped(what)) => {
            println!("skipped: no {what}");
            ExitCode::SUCCESS
        }
        Err(Ended::Failed(why)) => {
            eprintln!("vm-test: {why}");
            ExitCode::FAILURE
        }
    }
}

fn test(args: &Args) -> Done<()> {
    if cfg!(not(target_arch = "x86_64")) {
        return Err(Ended::Skipped("x86-64".to_owned()));
    }
    find_qemu(args)?;
    let target = target_folder()?;
    let place = target.join("vm");
    fs::create_dir_all(&place).map_err(|error| failed(&place.display(), &error))?;
    let kernel = fetch(&place)?;
    let programs = build(&target)?;
    let image = pack(&place, &programs)?;
    boot(&kernel, &image)
}

fn failed(what: &dyn core::fmt::Display, error: &dyn core::fmt::Display) -> Ended {
    Ended::Failed(format!("{what}: {error}"))
}

fn command(name: &str) -> Command {
    let mut command = Command::new(name);
    command.stdin(Stdio::null());
    command
}

/// What a command prints; its failure is ours.
fn output(command: &mut Command) -> Done<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| failed(&name, &error))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(failed(&name, &said.trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn has(program: &str) -> bool {
    let mut probe = command(program);
    probe.arg("--version");
    output(&mut probe).is_ok()
}

fn find_qemu(args: &Args) -> Done<()> {
    if !has(QEMU) && args.install {
        let install = ["install", "--yes", "--no-install-recommends", QEMU_PACKAGE];
        output(command("apt-get").args(install))?;
    }
    if has(QEMU) {
        return Ok(());
    }
    let hint = format!("{QEMU} (--install has apt-get install {QEMU_PACKAGE})");
    Err(Ended::Skipped(hint))
}

fn target_folder() -> Done<PathBuf> {
    let metadata =
        output(command(env!("CARGO")).args(["metadata", "--no-deps", "--format-version=1"]))?;
    let metadata: serde_json::Value =
        serde_json::from_str(&metadata).map_err(|error| failed(&"cargo metadata", &error))?;
    let folder = metadata["target_directory"].as_str();
    folder
        .map(PathBuf::from)
        .ok_or_else(|| Ended::Failed("cargo metadata tells no target directory".to_owned()))
}

/// Downloads the kernel and a shell once; gives the kernel.
fn fetch(place: &Path) -> Done<PathBuf> {
    let root = place.join("root");
    if let Some(kernel) = kernel_in(&root) {
        return Ok(kernel);
    }
    if !has("apt-get") || !has("dpkg-deb") {
        return Err(Ended::Skipped(
            "apt-get to download a kernel with".to_owned(),
        ));
    }
    let depends = output(command("apt-cache").args(["depends", "linux-image-cloud-amd64"]))?;
    // Its name without a version stands for the newest one, on which it depends.
    let mut words = depends.split_whitespace();
    let kernel =
        words.find(|word| word.starts_with("linux-image-") && *word != "linux-image-cloud-amd64");
    let Some(kernel) = kernel else {
        return Err(Ended::Skipped(
            "linux-image-cloud-amd64 in apt's lists".to_owned(),
        ));
    };
    let mut download = command("apt-get");
    download.args(["download", kernel, "busybox-static"]);
    // No network, or no such package any more: nothing that a change here could have broken.
    output(download.current_dir(place)).map_err(|ended| match ended {
        Ended::Failed(why) | Ended::Skipped(why) => {
            Ended::Skipped(format!("kernel to boot: {why}"))
        }
    })?;
    for entry in fs::read_dir(place).map_err(|error| failed(&place.display(), &error))? {
        let path = entry
            .map_err(|error| failed(&place.display(), &error))?
            .path();
        if path.extension() == Some(OsStr::new("deb")) {
            output(command("dpkg-deb").arg("-x").arg(path).arg(&root))?;
        }
    }
    kernel_in(&root).ok_or_else(|| Ended::Failed(format!("{kernel} has no kernel")))
}

fn kernel_in(root: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(root.join("boot")).ok()?.flatten();
    let mut kernels = entries.filter(|entry| {
        let name = entry.file_name();
        name.to_string_lossy().starts_with("vmlinuz-")
    });
    kernels.next().map(|entry| entry.path())
}

fn build(target: &Path) -> Done<Vec<PathBuf>> {
    let mut cargo = command(env!("CARGO"));
    cargo.args(["build", "--locked", "--quiet", "--bins", "--examples"]);
    cargo.args(["--package", "pinless-cli", "--package", "pinless-host"]);
    output(&mut cargo)?;
    Ok(PROGRAMS
        .iter()
        .map(|name| target.join("debug").join(name))
        .collect())
}

/// An initramfs of the programs, the libraries that they need, and the shell.
fn pack(place: &Path, programs: &[PathBuf]) -> Done<PathBuf> {
    let tree = place.join("initramfs");
    let _ = fs::remove_dir_all(&tree);
    let copy = |from: &Path, to: &Path| -> Done<()> {
        let folder = to.parent().unwrap_or(to);
        fs::create_dir_all(folder).map_err(|error| failed(&folder.display(), &error))?;
        fs::copy(from, to).map_err(|error| failed(&from.display(), &error))?;
        Ok(())
    };
    let shell = place.join("root/bin/busybox");
    copy(&shell, &tree.join("bin/busybox"))?;
    for program in programs {
        let name = program.file_name().unwrap_or_default();
        copy(program, &tree.join("bin").join(name))?;
        // Lines such as: libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f...)
        let libraries = output(command("ldd").arg(program))?;
        for library in libraries
            .split_whitespace()
            .filter(|word| word.starts_with('/'))
        {
            let inside = tree.join(library.trim_start_matches('/'));
            copy(Path::new(library), &inside)?;
        }
    }
    let init = tree.join("init");
    fs::write(&init, INIT).map_err(|error| failed(&init.display(), &error))?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))
        .map_err(|error| failed(&init.display(), &error))?;
    let archive = "find . | \"$1\" cpio -o -H newc 2>/dev/null";
    let image = place.join("initramfs.cpio");
    let file = fs::File::create(&image).map_err(|error| failed(&image.display(), &error))?;
    let mut packer = command("sh");
    packer.args(["-c", archive, "sh"]).arg(&shell);
    let packed = packer.current_dir(&tree).stdout(file).status();
    match packed {
        Ok(status) if status.success() => Ok(image),
        _ => Err(Ended::Failed("the initramfs cannot be packed".to_owned())),
    }
}

fn boot(kernel: &Path, image: &Path) -> Done<()> {
    let mut machine = command("timeout");
    machine.args([
        SECONDS_MAX,
        QEMU,
        "-machine",
        "q35,accel=tcg",
        "-cpu",
        "max",
        "-smp",
        "2",
    ]);
    machine.args(["-m", "1G", "-nodefaults", "-no-reboot", "-display", "none"]);
    machine.args(["-serial", "stdio", "-kernel"]).arg(kernel);
    machine.arg("-initrd").arg(image);
    machine.args([
        "-append",
        "console=ttyS0 quiet panic=-1 no_timer_check cgroup_no_v1=all",
    ]);
    let said = output(&mut machine)?.replace('\r', "");
    let _ = std::io::stdout().write_all(said.as_bytes());
    if said.lines().any(|line| line == PASSED) {
        return Ok(());
    }
    Err(Ended::Failed(
        "the tests in the machine did not pass, see above".to_owned(),
    ))
}
