//! Being told to stop.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What tells: Ctrl-C, SIGTERM, SIGHUP. From its making on none of them ends the process, and none is lost: one
/// that nobody waits for is told to who waits next.
pub(crate) struct Interrupt {
    signals: [Signal; 3],
}

impl Interrupt {
    pub(crate) fn listen() -> io::Result<Self> {
        let [interrupt, terminate, hang_up] =
            [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
        Ok(Self { signals: [interrupt?, terminate?, hang_up?] })
    }

    pub(crate) async fn told(&mut self) {
        let [interrupt, terminate, hang_up] = &mut self.signals;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hang_up.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[tokio::test]
    async fn a_signal_is_told_although_nobody_waited_when_it_came() {
        let mut interrupt = Interrupt::listen().unwrap();
        for signal in ["-HUP", "-TERM"] {
            let own = std::process::id().to_string();
            assert!(Command::new("kill").args([signal, &own]).status().unwrap().success());
            interrupt.told().await;
        }
    }
}
