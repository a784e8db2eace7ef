//! What the demonstration found: a table per host, and whether it was as promised.

use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::TITLE;
use super::stage::name;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::receipt::Delivery;
use crate::transfer::Sources;
use crate::{table, units};

/// One host's copy.
#[derive(Clone, Debug, Default)]
pub(super) struct Copy {
    pub(super) sources: Sources,
    pub(super) elapsed: Duration,
    /// The copy is the generated content.
    pub(super) verified: bool,
    /// Why there is none.
    pub(super) failure: Option<String>,
}

impl Copy {
    /// A copy that came and was not looked at yet.
    pub(super) fn new(delivery: &Delivery, elapsed: Duration) -> Self {
        Self { sources: delivery.sources.unwrap_or_default(), elapsed, verified: false, failure: None }
    }
}

/// Everything found.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    /// Bytes of content.
    pub(super) length: u64,
    /// Of the generated content.
    pub(super) digest: String,
    /// Bytes that left the origin.
    pub(super) origin: u64,
    /// Until the last host was done.
    pub(super) elapsed: Duration,
    pub(super) copies: Vec<Copy>,
}

const HEADER: [&str; 7] = ["HOST", "FROM ORIGIN", "FROM PEERS", "PARENTS", "TIME", "SPEED", "VERIFIED"];

impl Outcome {
    /// The text to print, or after printing it the failure.
    pub(super) fn told(&self, as_json: bool, kept: Option<&Path>) -> Result<String, Failure> {
        let wrong = self.wrong();
        if as_json {
            let value = self.json(&wrong, kept);
            return match wrong.is_empty() {
                true => Ok(format!("{value}\n")),
                false => Err(Failure { json: Some(Box::new(value)), ..failure(&wrong) }),
            };
        }
        let mut text = self.text();
        if let Some(kept) = kept {
            text.push_str(&format!("Kept in {}; remove it when you are done.\n", kept.display()));
        }
        if wrong.is_empty() {
            return Ok(text);
        }
        // The failure's report follows. Nobody is left to tell when stdout is closed.
        let _printed = io::stdout().lock().write_all(text.as_bytes());
        Err(failure(&wrong))
    }

    /// What is not as promised, a sentence each.
    fn wrong(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for (index, copy) in self.copies.iter().enumerate() {
            match &copy.failure {
                Some(why) => wrong.push(format!("{} failed: {why}", name(index))),
                None if !copy.verified => {
                    wrong.push(format!("the copy of {} is not the content", name(index)));
                }
                None => {}
            }
        }
        if u128::from(self.origin) * 100 > u128::from(self.length) * 102 {
            wrong.push(format!(
                "{} left the origin for {} of content, more than 1.02 times as much",
                units::bytes(self.origin),
                units::bytes(self.length)
            ));
        }
        wrong
    }

    fn text(&self) -> String {
        let rows: Vec<_> =
            self.copies.iter().enumerate().map(|(index, copy)| self.row(index, copy)).collect();
        let copies = match rows.len() {
            1 => "1 copy".to_owned(),
            many => format!("{many} copies"),
        };
        table::render(&HEADER, &rows)
            + &format!(
                "\n{copies} of {} in {}; the origin sent {} ({}).\n",
                units::bytes(self.length),
                units::duration(self.elapsed),
                units::bytes(self.origin),
                self.times(),
            )
    }

    /// `1.00 times the content`.
    fn times(&self) -> String {
        let hundredths = u128::from(self.origin) * 100 / u128::from(self.length.max(1));
        format!("{}.{:02} times the content", hundredths / 100, hundredths % 100)
    }

    fn row(&self, index: usize, copy: &Copy) -> Vec<String> {
        let verified = match &copy.failure {
            Some(_) => "failed",
            None if copy.verified => "yes",
            None => "NO",
        };
        let speed = units::rate(self.length, copy.elapsed).unwrap_or(0);
        vec![
            name(index),
            units::bytes(copy.sources.origin),
            units::bytes(copy.sources.peers),
            copy.sources.parents.to_string(),
            units::duration(copy.elapsed),
            format!("{}/s", units::bytes(speed)),
            verified.to_owned(),
        ]
    }

    fn json(&self, wrong: &[String], kept: Option<&Path>) -> serde_json::Value {
        let host = |(index, copy): (usize, &Copy)| {
            json!({
                "host": name(index),
                "origin_bytes": copy.sources.origin,
                "peer_bytes": copy.sources.peers,
                "parents": copy.sources.parents,
                "seconds": copy.elapsed.as_secs_f64(),
                "verified": copy.verified,
                "failure": copy.failure,
            })
        };
        let exit = if wrong.is_empty() { Exit::Success } else { Exit::Failure };
        json!({
            "ok": wrong.is_empty(),
            "exit_code": exit.code(),
            "content_length": self.length,
            "digest": self.digest,
            "origin_bytes": self.origin,
            "seconds": self.elapsed.as_secs_f64(),
            "hosts": self.copies.iter().enumerate().map(host).collect::<Vec<_>>(),
            "wrong": wrong,
            "kept": kept.map(|kept| kept.display().to_string()),
        })
    }
}

fn failure(wrong: &[String]) -> Failure {
    Failure::new(TITLE, Exit::Failure, wrong.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn outcome() -> Outcome {
        let copy = |origin, peers| Copy {
            sources: Sources { origin, peers, local: 0, parents: 1 },
            elapsed: Duration::from_secs(2),
            verified: true,
            failure: None,
        };
        Outcome {
            length: 100 * MIB,
            digest: "blake3:00".to_owned(),
            origin: 102 * MIB,
            elapsed: Duration::from_secs(2),
            copies: vec![copy(60 * MIB, 40 * MIB), copy(42 * MIB, 58 * MIB)],
        }
    }

    #[test]
    fn a_table_per_host() {
        let text = outcome().told(false, None).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[1], " host-1   60.0 MiB      40.0 MiB     1         2.00 s   50.0 MiB/s   yes");
        assert_eq!(
            lines[4],
            "2 copies of 100.0 MiB in 2.00 s; the origin sent 102.0 MiB (1.02 times the content)."
        );
        let json: serde_json::Value = serde_json::from_str(&outcome().told(true, None).unwrap()).unwrap();
        assert_eq!(
            (json["ok"].clone(), json["hosts"][1]["peer_bytes"].clone()),
            (true.into(), (58 * MIB).into())
        );
    }

    #[test]
    fn every_broken_promise_is_a_failure() {
        let failed = |change: fn(&mut Outcome)| {
            let mut outcome = outcome();
            change(&mut outcome);
            let failure = outcome.told(true, None).unwrap_err();
            assert_eq!(failure.exit, Exit::Failure);
            assert_eq!(failure.json()["ok"], false);
            assert_eq!(failure.json()["hosts"][0]["host"], "host-1");
            failure.message
        };
        assert!(failed(|outcome| outcome.origin += 1).contains("more than 1.02 times"));
        assert!(failed(|outcome| outcome.copies[1].verified = false).contains("copy of host-2 is not"));
        assert!(
            failed(|outcome| outcome.copies[0].failure = Some("oops".to_owned()))
                .contains("host-1 failed: oops")
        );
    }
}
