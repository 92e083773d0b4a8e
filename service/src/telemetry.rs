//! Logs: set up once in `main`, written to standard error.

use std::error::Error as StdError;
use std::fmt;
use std::io::{self, IsTerminal};
use std::str::FromStr;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

/// Installs the process-wide log subscriber and logs one line that names the process.
///
/// Logs go to standard error, so that what a command prints on standard output stays clean.
pub fn init(
    name: &'static str,
    format: LogFormat,
    filter: &LogFilter,
) -> Result<(), TelemetryError> {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter.parse()?)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    match format {
        LogFormat::Text => builder.finish().try_init(),
        LogFormat::Json => builder.json().flatten_event(true).finish().try_init(),
    }
    .map_err(|source| TelemetryError::Install { source })?;
    tracing::debug!(service.name = name, "logging started");
    Ok(())
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

impl FromStr for LogFormat {
    type Err = TelemetryError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(TelemetryError::Format { format: text.to_owned() }),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// Which lines are logged: a directive list such as `info,sqlx=warn`, known to be one.
#[derive(Clone, Debug)]
pub struct LogFilter(String);

impl LogFilter {
    fn parse(&self) -> Result<EnvFilter, TelemetryError> {
        let Self(filter) = self;
        EnvFilter::try_new(filter)
            .map_err(|reason| TelemetryError::Filter { filter: filter.clone(), reason })
    }
}

impl FromStr for LogFilter {
    type Err = TelemetryError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let filter = Self(text.to_owned());
        filter.parse().map(|_| filter)
    }
}

/// Why logs could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The format is neither of the two that exist.
    #[error("log format {format:?} is unknown, expected text or json")]
    Format {
        /// What was given.
        format: String,
    },
    /// The filter is not a directive list.
    #[error("log filter {filter:?} could not be read: {reason}")]
    Filter {
        /// What was given.
        filter: String,
        /// The parser's complaint, in the message: arguments are reported without what is behind it.
        reason: ParseError,
    },
    /// A subscriber is installed already.
    #[error("log subscriber could not be installed")]
    Install {
        /// The registry's complaint.
        source: TryInitError,
    },
}

/// Shows an error with all its causes, `outer: inner: innermost`, for the one place that logs it.
pub fn chain(error: &dyn StdError) -> impl fmt::Display + '_ {
    Chain(error)
}

struct Chain<'a>(&'a dyn StdError);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = self.0.to_string();
        f.write_str(&last)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Our own errors never repeat their cause, but several libraries' do.
            if !last.ends_with(&text) {
                write!(f, ": {text}")?;
            }
            last = text;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Link {
        text: &'static str,
        source: Option<Box<Link>>,
    }

    #[test]
    fn an_error_chain_shows_every_cause_once() {
        let inner = Link { text: "refused", source: None };
        let middle = Link { text: "no connection: refused", source: Some(Box::new(inner)) };
        let outer = Link { text: "could not load", source: Some(Box::new(middle)) };
        assert_eq!(chain(&outer).to_string(), "could not load: no connection: refused");
    }

    #[test]
    fn a_log_format_reads_back_what_it_displays() {
        for format in [LogFormat::Text, LogFormat::Json] {
            assert_eq!(format.to_string().parse::<LogFormat>().unwrap(), format);
        }
        assert!("xml".parse::<LogFormat>().is_err());
    }
}
