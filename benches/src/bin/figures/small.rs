//! What small tasks and idle daemons cost, on loopback.

use std::fs;
use std::process::Command;

use damselfly_benches::place::Place;
use damselfly_benches::process::{memory, timed};
use damselfly_benches::stats::median;
use damselfly_benches::{BenchError, io};

use super::bench::{Bench, mebibytes, say};

impl Bench {
    pub(super) async fn small(&self) -> Result<(), BenchError> {
        let origin = self.origin(&Place::loopback(), "small", 1 << 10).await?;
        let first = self.host("first", None).await?;
        let second = self.host("second", Some(first.scheduler)).await?;
        for (name, length, count, goal) in [("1 KiB", 1 << 10, 100, 0.8), ("10 MiB", 10 << 20, 30, 1.0)] {
            let (mut ours, mut curls) = (Vec::new(), Vec::new());
            let mut versions = (Vec::new(), Vec::new());
            for number in 0..count {
                let file = format!("small-{length}-{number}");
                self.file(&file, length)?;
                timed(&mut first.dfget(&origin.url(&file), &file))?;
                ours.push(timed(&mut second.dfget(&origin.url(&file), &file))?.wall);
                let out = self.dir.join("curl-out");
                curls.push(
                    timed(Command::new("curl").args(["-sS", "-o"]).arg(&out).arg(origin.url(&file)))?.wall,
                );
                fs::remove_file(&out).map_err(io("clean up"))?;
                versions.0.push(timed(Command::new(self.programs.join("dfget")).arg("--version"))?.wall);
                versions.1.push(timed(Command::new("curl").arg("--version"))?.wall);
            }
            let dfget = median(&ours) - median(&versions.0);
            let curl = median(&curls) - median(&versions.1);
            say(&format!(
                "small {name}: dfget {:.2} ms (--version {:.2} ms), curl {:.2} ms (--version {:.2} ms), ratio {:.2} \
                 (goal: at most {goal})",
                median(&ours) * 1e3,
                median(&versions.0) * 1e3,
                median(&curls) * 1e3,
                median(&versions.1) * 1e3,
                dfget / curl
            ));
        }
        Ok(())
    }

    pub(super) async fn start(&self) -> Result<(), BenchError> {
        let mut ready = Vec::new();
        for _ in 0..self.rounds {
            let host = self.host("start", None).await?;
            ready.push(host.ready_after.as_secs_f64());
            tokio::time::sleep(std::time::Duration::from_secs(2)).await;
            say(&format!("idle memory {:.1} MiB", mebibytes(memory(host.pid())?)));
        }
        say(&format!("start: ready after {:.0} ms (goal: within 200 ms)", median(&ready) * 1e3));
        Ok(())
    }
}
