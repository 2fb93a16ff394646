//! The helper process: this same program, executed anew with [`HELPER_ARGUMENT`].
//!
//! `libcontainer` forks and changes namespaces and the working directory, which is safe in a process with one thread only. So each
//! container is made by a process of its own, which ends when the container waits for its start. The overlay is mounted in a mount
//! namespace of the helper: only the container keeps it, and it goes with the container, however that ends.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::default::DefaultExecutor;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use oci_spec::runtime::Spec;
use rustix::mount::{MountFlags, MountPropagationFlags};
use seccompiler::BpfProgram;

use super::bundle::{Bundle, Request};
use super::{seccomp, sys};

/// First argument of a helper process.
pub const HELPER_ARGUMENT: &str = "__container";
/// Second argument; the third is the bundle's directory.
pub(super) const CREATE: &str = "create";

/// Becomes the tenant's program, behind the filters.
#[derive(Clone)]
struct FilteringExecutor {
    filters: Vec<BpfProgram>,
    program: DefaultExecutor,
}

impl Executor for FilteringExecutor {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        self.program.validate(spec)
    }

    /// The last step before the container waits. The filters are installed here and not in `exec`: the kernel takes a while to compile
    /// them, and what is left to do (wait, read, execute) is allowed by them.
    fn setup_envs(&self, variables: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        self.program.setup_envs(variables)?;
        sys::reset_signals();
        for filter in &self.filters {
            seccompiler::apply_filter(filter).map_err(|error| ExecutorSetEnvsError::Other(format!("seccomp: {error}")))?;
        }
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        self.program.exec(spec)
    }
}

/// Runs a helper process. The program's `main` calls this before it starts any thread when its first argument is
/// [`HELPER_ARGUMENT`], with the arguments after that one, and ends with what it returns.
#[must_use]
pub fn helper_main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut arguments = arguments.into_iter();
    let (verb, bundle) = (arguments.next(), arguments.next());
    let outcome = match (verb.as_ref().and_then(|verb| verb.to_str()), bundle) {
        (Some(CREATE), Some(bundle)) => create(&Bundle { directory: PathBuf::from(bundle) }),
        _ => Err("this argument is for the program's own use".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = error.to_string();
            let mut source = error.source();
            while let Some(cause) = source {
                let cause_text = cause.to_string();
                // many of libcontainer's errors repeat their cause
                if !text.contains(&cause_text) {
                    text = format!("{text}: {cause_text}");
                }
                source = cause.source();
            }
            // the node reads this from the helper's log
            let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
            ExitCode::FAILURE
        }
    }
}

type Failure = Box<dyn std::error::Error>;

fn create(bundle: &Bundle) -> Result<(), Failure> {
    let request: Request = bundle.request().ok_or("the bundle has no request")?;
    // libcontainer leaves the node's own supplementary groups to the tenant
    rustix::thread::set_thread_groups(&[])?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    sys::unshare_mounts()?;
    // what is mounted from here on stays here
    rustix::mount::mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    mount_root(bundle, &request.lower)?;
    let filters = seccomp::filters()?;
    let executor = FilteringExecutor { filters, program: DefaultExecutor {} };
    let log = || open_log(&bundle.log());
    ContainerBuilder::new(request.name.to_string(), SyscallType::default())
        .with_root_path(&request.containers)?
        .with_executor(executor)
        .with_stdout(log()?)
        .with_stderr(log()?)
        .validate_id()?
        .as_init(&bundle.directory)
        .with_systemd(false)
        .with_detach(true)
        .build()?;
    Ok(())
}

/// The image below, an empty layer above it in which missing mount points are made; the container sees it read-only.
fn mount_root(bundle: &Bundle, lower: &Path) -> Result<(), Failure> {
    let text = |path: &Path| path.to_str().map(str::to_owned).ok_or("a path is not UTF-8");
    let (lower, upper, work) = (text(lower)?, text(&bundle.upper())?, text(&bundle.work())?);
    let options = std::ffi::CString::new(format!("lowerdir={lower},upperdir={upper},workdir={work}"))?;
    let mounted = rustix::mount::mount("overlay", bundle.merged(), "overlay", MountFlags::NODEV | MountFlags::NOSUID, &*options);
    mounted.map_err(|errno| format!("cannot mount the overlay: {errno}").into())
}

/// Each of stdout and stderr needs a descriptor of its own: libcontainer closes them one by one.
fn open_log(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}
