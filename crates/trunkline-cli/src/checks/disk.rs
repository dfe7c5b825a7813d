//! Room on disks.

use std::path::Path;

use nix::sys::statvfs::statvfs;

use super::{Finding, Verdict};

const CHECK: &str = "disk";

/// With less a store that is written to has hours, not days.
const WARN_BYTES: u64 = 1 << 30;
/// With less it has minutes, and a rewrite of a log does not fit any more.
const FAIL_BYTES: u64 = 64 << 20;

/// How much room there is where `what` lies.
pub(crate) fn check(what: &str, path: &Path) -> Finding {
    match statvfs(path) {
        Ok(disk) => {
            let unit = disk.fragment_size();
            judge(
                what,
                path,
                disk.blocks_available().saturating_mul(unit),
                disk.blocks().saturating_mul(unit),
            )
        }
        Err(error) => Finding::warn(
            CHECK,
            format!("the disk of {what} cannot be looked at: {}: {error}", path.display()),
            "check that the path exists and this user may enter it",
        ),
    }
}

fn judge(what: &str, path: &Path, available: u64, size: u64) -> Finding {
    let path = path.display();
    let text = format!("{} are free where {what} lies: {path}", bytes(available));
    let fix = "make room there, or move it to a larger disk";
    match available {
        // What has no size is no disk, and cannot be full.
        _ if size == 0 => Finding::ok(CHECK, format!("{what} lies on no disk: {path}")),
        available if available < FAIL_BYTES => Finding::bad(Verdict::Fail, CHECK, text, fix),
        available if available < WARN_BYTES => Finding::bad(Verdict::Warn, CHECK, text, fix),
        _ => Finding::ok(CHECK, text),
    }
}

/// A number of bytes as people read it.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match UNITS.into_iter().find(|(_, shift)| bytes >= 1 << shift) {
        // The cast loses nothing that would be shown.
        Some((unit, shift)) => format!("{:.1} {unit}", bytes as f64 / (1_u64 << shift) as f64),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_judged_by_what_is_left() {
        let judged = |available, size| judge("x", Path::new("/x"), available, size).verdict;
        assert_eq!(judged(2 << 30, 8 << 30), Verdict::Ok);
        assert_eq!(judged((1 << 30) - 1, 8 << 30), Verdict::Warn);
        assert_eq!(judged(1 << 20, 8 << 30), Verdict::Fail);
        assert_eq!(judged(0, 0), Verdict::Ok);
        assert!(check("x", Path::new("/nonexistent-directory")).text.contains("/nonexistent-directory"));
    }

    #[test]
    fn bytes_are_shown_in_the_unit_that_suits() {
        for (number, shown) in [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (3 << 29, "1.5 GiB")]
        {
            assert_eq!(bytes(number), shown);
        }
    }
}
