//! A CPU share of v1 and the CRI, and a CPU weight of v2.

/// cpu.shares (2 to 262144) as cpu.weight (1 to 10000): quadratic in the logarithm, through
/// 2 → 1, 1024 → 100 and 262144 → 10000, so that a container that asks for the default on one
/// scale gets the default on the other.
pub(super) fn weight_of_shares(shares: u64) -> u64 {
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    let l = (shares as f64).log2();
    let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
    10f64.powf(exponent).ceil() as u64
}

/// The least cpu.shares with this cpu.weight.
pub(super) fn shares_of_weight(weight: u64) -> u64 {
    let (mut low, mut high) = (2, 262_144);
    while low < high {
        let middle = (low + high) / 2;
        if weight_of_shares(middle) < weight { low = middle + 1 } else { high = middle }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn b29_shares_become_weights_by_the_quadratic_mapping() {
        let pairs = [(0, 1), (2, 1), (3, 2), (10, 4), (100, 17), (1024, 100), (2048, 174), (262_144, 10_000)];
        for (shares, weight) in pairs {
            assert_eq!(weight_of_shares(shares), weight, "{shares}");
        }
        assert_eq!(shares_of_weight(10_000), weight_floor(10_000));
    }

    fn weight_floor(weight: u64) -> u64 {
        (2..=262_144).find(|s| weight_of_shares(*s) == weight).unwrap()
    }

    proptest! {
        #[test]
        fn weights_rise_with_shares(a in 2u64..=262_144, b in 2u64..=262_144) {
            let (low, high) = (a.min(b), a.max(b));
            prop_assert!(weight_of_shares(low) <= weight_of_shares(high));
            prop_assert!((1..=10_000).contains(&weight_of_shares(a)));
            prop_assert_eq!(weight_of_shares(shares_of_weight(weight_of_shares(a))), weight_of_shares(a));
        }
    }
}
