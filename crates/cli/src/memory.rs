//! What the allocator does with memory that is not needed at the moment.

use std::hint::black_box;

/// glibc gives free memory back to the kernel once twice as much lies at the end of a heap.
const KEPT: usize = 4 << 20;

/// Has freed memory kept for what comes next, up to 8 MiB at the end of each of the allocator's heaps.
///
/// Content that comes over a socket passes through buffers that are allocated and freed all the time. Where their memory
/// is given back in between, the kernel clears every page anew, which costs more than receiving what is in it: half of
/// the CPU time of an export. glibc takes the largest chunk that it mapped for itself and that was freed for the measure
/// of what a program needs; one that is never touched costs nothing. Other allocators do not care.
pub(crate) fn keep_what_is_freed() {
    drop(black_box(Vec::<u8>::with_capacity(KEPT)));
}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;

    #[test]
    fn buffers_that_come_and_go_do_not_fault_again_and_again() {
        keep_what_is_freed();
        // The name, which stands in parentheses before it, may contain spaces.
        let faults = || -> u64 {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            stat.rsplit(')').next().unwrap().split_whitespace().nth(7).unwrap().parse().unwrap()
        };
        let churn = move || {
            let before = faults();
            for _ in 0..100 {
                let buffers: Vec<_> = (0..8).map(|fill: u8| black_box(vec![fill + 1; 300_000])).collect();
                drop(buffers);
            }
            faults() - before
        };
        let faults = std::thread::spawn(churn).join().unwrap();
        // 100 × 8 × 74 pages where nothing is kept.
        assert!(faults < 5_000, "{faults} page faults");
    }
}
