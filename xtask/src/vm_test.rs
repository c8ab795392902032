//! `cargo xtask vm-test`: `pinless teardown` and the host's tests, on a kernel with cgroup v2 only.
//!
//! Debian's cloud kernel boots in QEMU, with software emulation, so that it works anywhere, from an
//! initramfs of our own programs and one shell script. Kernel and shell are downloaded into
//! `target/vm`, and not installed. The kernel is older than what managed memory needs: the tests of
//! it have to say so, and those of groups, processes and rings to hold.

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
/// Far above the minute that it takes: emulation beside a busy neighbour is several times slower.
const SECONDS_MAX: &str = "900";
/// The exit code of `timeout` for what it had to end.
const TIMED_OUT: i32 = 124;
const QEMU: &str = "qemu-system-x86_64";
const QEMU_PACKAGE: &str = "qemu-system-x86";
const PROGRAMS: [&str; 3] = ["pinless", "examples/leaker", "examples/page_keeper"];
/// Targets of the host's tests, and how they are called in the machine.
const TESTS: [(&str, &str); 2] = [("pinless_host", "host-unit"), ("it", "host-it")];

/// Options of the test.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Have apt-get install QEMU if it is missing (as root); where `CI` is set it is done anyway
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

/// No network, or no such package any more: nothing that a change here could have broken.
fn or_skip(what: &str) -> impl Fn(Ended) -> Ended {
    move |(Ended::Failed(why) | Ended::Skipped(why))| Ended::Skipped(format!("{what}: {why}"))
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
    if has(QEMU) {
        return Ok(());
    }
    if !args.install && std::env::var_os("CI").is_none() {
        let hint = format!("{QEMU} (--install has apt-get install {QEMU_PACKAGE})");
        return Err(Ended::Skipped(hint));
    }
    let mut install = command("apt-get");
    install.args(["install", "--yes", "--no-install-recommends"]);
    // What is there and in its way is somebody's.
    install.args(["--no-remove", QEMU_PACKAGE]);
    output(&mut install).map_err(or_skip(QEMU))?;
    if !has(QEMU) {
        return Err(failed(&QEMU_PACKAGE, &format_args!("has no {QEMU}")));
    }
    Ok(())
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
    let depends = output(command("apt-cache").args(["depends", "linux-image-cloud-amd64"]))
        .map_err(or_skip("kernel to boot"))?;
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
    output(download.current_dir(place)).map_err(or_skip("kernel to boot"))?;
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

/// Builds the programs; gives where each is, and how it is called in the machine.
fn build(target: &Path) -> Done<Vec<(PathBuf, String)>> {
    let mut cargo = command(env!("CARGO"));
    cargo.args(["build", "--locked", "--quiet", "--bins", "--examples"]);
    cargo.args(["--package", "pinless-cli", "--package", "pinless-host"]);
    output(&mut cargo)?;
    let program = |name: &&str| {
        let path = target.join("debug").join(name);
        let name = path.file_name().unwrap_or_default();
        (path.clone(), name.to_string_lossy().into_owned())
    };
    let mut programs: Vec<_> = PROGRAMS.iter().map(program).collect();
    let mut cargo = command(env!("CARGO"));
    cargo.args(["test", "--locked", "--quiet", "--no-run", "--lib"]);
    cargo.args(["--test", "it", "--package", "pinless-host"]);
    let built = output(cargo.arg("--message-format=json"))?;
    for (test, name) in TESTS {
        let path = built.lines().find_map(|line| test_in(line, test));
        let path = path.ok_or_else(|| Ended::Failed(format!("cargo built no test {test}")))?;
        programs.push((path, name.to_owned()));
    }
    Ok(programs)
}

/// The program of a test, if cargo tells of it in this line.
fn test_in(line: &str, test: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    let is_it = message["target"]["name"] == test && message["profile"]["test"] == true;
    let program = message["executable"].as_str().filter(|_| is_it)?;
    Some(PathBuf::from(program))
}

/// An initramfs of the programs, the libraries that they need, and the shell.
fn pack(place: &Path, programs: &[(PathBuf, String)]) -> Done<PathBuf> {
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
    for (program, name) in programs {
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
    let ended = machine
        .output()
        .map_err(|error| failed(&"timeout", &error))?;
    let said = String::from_utf8_lossy(&ended.stdout).replace('\r', "");
    // Also when it was cut off: how far it got is what one wants to know.
    let _ = std::io::stdout().write_all(said.as_bytes());
    let _ = std::io::stderr().write_all(&ended.stderr);
    if said.lines().any(|line| line == PASSED) {
        return Ok(());
    }
    if ended.status.code() == Some(TIMED_OUT) {
        let why = format!("the machine was cut off after {SECONDS_MAX} s");
        return Err(Ended::Failed(why));
    }
    Err(Ended::Failed(
        "the tests in the machine did not pass, see above".to_owned(),
    ))
}
