//! Outputs that the daemon writes: at a path that it opens, or into the file that this process opened.

use damselfly_transport::local::{Direction, Token};
use tonic::{Code, Status};

use crate::endpoint::Daemon;
use crate::failure::{Failure, Reason};
use crate::handing::{self, NotTaken};
use crate::output::{FileOutput, Leftover};
use crate::part::{OutputError, Part};

/// What became of one way to bring content from or to a daemon.
#[derive(Debug)]
pub(crate) enum Tried<T> {
    Done(T),
    /// The daemon does not take this way with this file; another will do.
    Unsuitable {
        why: String,
        /// Whether a user should know, because such daemons do take it.
        unusual: bool,
    },
}

impl<T> Tried<T> {
    pub(crate) fn unsuitable(why: impl ToString) -> Self {
        Tried::Unsuitable { why: why.to_string(), unusual: true }
    }

    pub(crate) fn not_taken(why: &NotTaken) -> Self {
        Tried::Unsuitable { why: why.to_string(), unusual: !matches!(why, NotTaken::Unknown(_)) }
    }
}

/// The ways that did not do, on the way to one that does.
#[derive(Debug, Default)]
pub(crate) struct Detour {
    unusual: Vec<String>,
    usual: Option<String>,
}

impl Detour {
    /// A way did not do. `unusual` as in [`Tried::Unsuitable`].
    pub(crate) fn add(&mut self, why: String, unusual: bool) {
        if unusual {
            self.unusual.push(why);
        } else {
            self.usual = Some(why);
        }
    }

    /// Why another way was taken in the end; `None` where it was the first.
    pub(crate) fn reason(&self) -> Option<String> {
        if self.unusual.is_empty() { self.usual.clone() } else { Some(self.unusual.join("; ")) }
    }

    /// The warning for a user, with what is done instead; `None` where nothing is unusual.
    pub(crate) fn warning(&self, program: &str, instead: &str) -> Option<String> {
        (!self.unusual.is_empty()).then(|| format!("{program}: {}; {instead}", self.unusual.join("; ")))
    }
}

/// What is done where others did not do.
pub(crate) const BY_PATH: &str = "it opens the file itself instead (path)";
/// See [`BY_PATH`].
pub(crate) const BY_DESCRIPTOR: &str = "it gets the open file instead (fd)";
/// See [`BY_PATH`].
pub(crate) const BY_STREAM: &str = "taking the content through its socket instead (stream)";

/// Why the daemon's story has no good end.
#[derive(Debug)]
pub(crate) enum TellError {
    Call(Status),
    Failed(Failure),
}

impl TellError {
    pub(crate) fn failure(self, of_call: impl FnOnce(&Status) -> Failure) -> Failure {
        match self {
            TellError::Call(status) => of_call(&status),
            TellError::Failed(failure) => failure,
        }
    }
}

/// The output as a program asks for it.
pub(crate) struct Ordered<'a> {
    pub(crate) output: &'a FileOutput,
    /// What the daemon is to call it.
    pub(crate) named: &'a str,
    /// Whether there is another way when the daemon does not open the output.
    pub(crate) has_other_ways: bool,
}

/// Has the daemon open the output. `tell` makes the call, says when it is answered, and hears of it to the end; `bytes`
/// are how many the daemon says it wrote.
///
/// # Errors
/// As `tell`; when the daemon wrote something else than it says.
pub(crate) async fn at_path<T>(
    order: Ordered<'_>,
    tell: impl AsyncFnOnce(&mut Leftover<'_>) -> Result<T, TellError>,
    bytes: impl FnOnce(&T) -> u64,
) -> Result<Tried<T>, TellError> {
    let Ordered { output, named, has_other_ways } = order;
    let mut leftover = Leftover::new(output);
    let told = match tell(&mut leftover).await {
        Ok(told) => told,
        Err(TellError::Call(status)) => {
            // Somebody else's file: Dragonfly's daemon found it there before it wrote anything.
            if status.message().contains("already exist") || status.code() == Code::AlreadyExists {
                leftover.keep();
            }
            if Reason::of(&status) == Some(Reason::Path) && has_other_ways {
                let why = format!("the daemon does not open this output itself ({})", status.message());
                return Ok(Tried::unsuitable(why));
            }
            return Err(TellError::Call(status));
        }
        Err(failed) => return Err(failed),
    };
    leftover.keep();
    let length = bytes(&told);
    match std::fs::metadata(&output.path) {
        Ok(found) if found.len() == length => Ok(Tried::Done(told)),
        Ok(found) => {
            let path = output.path.display().to_string();
            Err(TellError::Failed(OutputError::Length { path, found: found.len(), length }.into()))
        }
        Err(why) => Ok(Tried::unsuitable(format!(
            "the daemon says that it wrote {named}, but here it cannot be seen ({why})"
        ))),
    }
}

/// Has the daemon write to a file that this process opens for the task called `id` and puts in its place. `tell` as in
/// [`at_path`], with the token that its request is to name.
///
/// # Errors
/// As `tell`; what the file system says.
pub(crate) async fn into_descriptor<T>(
    output: &FileOutput,
    id: &str,
    daemon: &Daemon,
    tell: impl AsyncFnOnce(&Token) -> Result<T, TellError>,
    bytes: impl FnOnce(&T) -> u64,
) -> Result<Tried<T>, TellError> {
    let failed = |why: OutputError| TellError::Failed(why.into());
    let part = tokio::task::block_in_place(|| Part::open(output, id)).map_err(failed)?;
    let token = match handing::hand_over(daemon, part.file(), Direction::ToClient).await {
        Ok(token) => token,
        Err(why) => return Ok(Tried::not_taken(&why)),
    };
    let told = tell(&token).await?;
    let length = bytes(&told);
    tokio::task::block_in_place(|| part.finish_with(length)).map_err(failed)?;
    Ok(Tried::Done(told))
}
