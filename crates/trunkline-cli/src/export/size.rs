//! Sizes and shares of processors as the formats of deployments write them.

const UNITS: [(u64, &str, &str); 6] = [
    (1 << 30, "GiB", "Gi"),
    (1 << 20, "MiB", "Mi"),
    (1 << 10, "KiB", "Ki"),
    (1_000_000_000, "GB", "G"),
    (1_000_000, "MB", "M"),
    (1_000, "KB", "k"),
];

/// As the configuration writes it: `512MB`, `64MiB`.
pub(super) fn config(bytes: u64) -> String {
    exact(bytes).map_or_else(|| bytes.to_string(), |(count, unit, _)| format!("{count}{unit}"))
}

/// As Kubernetes writes it: `512M`, `64Mi`.
pub(super) fn kubernetes(bytes: u64) -> String {
    exact(bytes).map_or_else(|| bytes.to_string(), |(count, _, unit)| format!("{count}{unit}"))
}

/// The largest unit that the number is a multiple of.
fn exact(bytes: u64) -> Option<(u64, &'static str, &'static str)> {
    UNITS
        .into_iter()
        .filter(|(unit, ..)| bytes > 0 && bytes.is_multiple_of(*unit))
        .max_by_key(|(unit, ..)| *unit)
        .map(|(unit, config, kubernetes)| (bytes / unit, config, kubernetes))
}

/// A share of processors in thousandths, at least one.
pub(super) fn millicpus(cpus: f64) -> u64 {
    // At most 1024 processors (`runtime.resources.cpus`), so the cast loses nothing.
    ((cpus * 1000.0).round() as u64).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_keep_their_value_in_every_notation() {
        for (bytes, in_config, in_kubernetes) in [
            (512_000_000, "512MB", "512M"),
            (64 << 20, "64MiB", "64Mi"),
            (1 << 30, "1GiB", "1Gi"),
            (2_000, "2KB", "2k"),
            (1_234_567, "1234567", "1234567"),
        ] {
            assert_eq!((config(bytes).as_str(), kubernetes(bytes).as_str()), (in_config, in_kubernetes));
        }
        assert_eq!((millicpus(0.5), millicpus(2.0), millicpus(0.0001)), (500, 2000, 1));
    }
}
