//! Programs that run though another build of them would be started now.

use std::fs;

use crate::service::Service;
use crate::stack::Stack;

impl Stack {
    /// Whether the project's own program that runs is not the one that would be started: it was built again
    /// since, or comes from another directory, as a release build does. Only Linux tells.
    pub fn outdated(&self, service: Service) -> bool {
        let (Some(program), Some(running)) = (service.program(), self.running(service)) else {
            return false;
        };
        // Of a file that is gone the name has an addition.
        let runs = fs::read_link(format!("/proc/{}/exe", running.pid));
        let started = self.places.programs.join(program).canonicalize();
        matches!((runs, started), (Ok(runs), Ok(started)) if runs != started)
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use rustix::process::Signal;

    use crate::process::{Launch, Running};
    use crate::settings::Settings;

    use super::*;

    const SERVICE: Service = Service::UserApi;

    /// A shell under the program's name. Another process writes it: a file that this one has open for
    /// writing could not be started while another test forks.
    fn build(directory: &Path) {
        fs::create_dir_all(directory).unwrap();
        let mut copy = Command::new("cp");
        copy.args(["--remove-destination", "/bin/sh"]);
        let copied = copy.arg(directory.join(SERVICE.program().unwrap())).status().unwrap();
        assert!(copied.success());
    }

    #[tokio::test]
    async fn a_program_is_outdated_when_it_was_built_again_or_is_of_another_directory() {
        let scratch = tempfile::tempdir().unwrap();
        let (debug, release) = (scratch.path().join("debug"), scratch.path().join("release"));
        build(&debug);
        build(&release);
        let mut settings = Settings::from_environment();
        settings.state = Some(scratch.path().to_path_buf());
        let stack = Stack::new(&settings).unwrap().with_programs(&debug);
        stack.create_directories().unwrap();
        assert!(!stack.outdated(SERVICE), "nothing runs");

        let launch = Launch {
            program: debug.join(SERVICE.program().unwrap()),
            args: ["-c", "sleep 60; :"].map(Into::into).into(),
            environment: Vec::new(),
            directory: "/".into(),
            user: None,
        };
        let log = stack.places().log("user-api");
        let running = Running::spawn(&launch, &log, &stack.pid_file(SERVICE)).unwrap();
        let seen = [
            stack.outdated(SERVICE),
            stack.clone().with_programs(&release).outdated(SERVICE),
            stack.outdated(Service::Kafka),
        ];
        build(&debug);
        let rebuilt = stack.outdated(SERVICE);
        running.signal(Signal::KILL).unwrap();
        assert_eq!((seen, rebuilt), ([false, true, false], true));
    }
}
