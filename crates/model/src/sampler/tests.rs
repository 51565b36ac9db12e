#![allow(clippy::unwrap_used)]

use super::*;

fn settings(temperature: f64, top_k: u32, top_p: f64, min_p: f64) -> SamplingSettings {
    SamplingSettings::new(temperature, top_k, top_p, min_p).unwrap()
}

/// Logits of a realistic distribution: few likely, many unlikely, two equal.
fn logits() -> Vec<f32> {
    let mut logits: Vec<f32> = (0..20).map(|i| 2.5 - 0.4 * ((i * 7) % 20) as f32).collect();
    logits[4] = logits[9];
    logits
}

/// Computes the exact probabilities in the simplest way.
fn exact(temperature: f64, top_k: usize, top_p: f64, min_p: f64) -> Vec<f64> {
    let logits = logits();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap().then(a.cmp(&b)));
    if top_k > 0 {
        order.truncate(top_k);
    }
    let weight = |i: usize| (f64::from(logits[i]) / temperature).exp();
    let total: f64 = order.iter().map(|&i| weight(i)).sum();
    let mut sum = 0.0;
    let mut kept = Vec::new();
    for &i in &order {
        kept.push(i);
        sum += weight(i) / total;
        if sum >= top_p {
            break;
        }
    }
    let highest = weight(order[0]);
    kept.retain(|&i| weight(i) >= min_p * highest);
    let total: f64 = kept.iter().map(|&i| weight(i)).sum();
    let mut probabilities = vec![0.0; logits.len()];
    for i in kept {
        probabilities[i] = weight(i) / total;
    }
    probabilities
}

/// Samples 100,000 times and compares the counts with the exact probabilities.
fn assert_distribution(temperature: f64, top_k: u32, top_p: f64, min_p: f64) {
    const DRAWS: usize = 100_000;
    let settings = settings(temperature, top_k, top_p, min_p);
    let expected = exact(temperature, top_k as usize, top_p, min_p);
    let mut counts = vec![0usize; expected.len()];
    let mut draws = Draws::at(RandomState::seeded(11));
    let mut sampler = Sampler::default();
    let logits = logits();
    for _ in 0..DRAWS {
        counts[sampler.choose(&settings, &logits, draws.uniform()) as usize] += 1;
    }
    let mut chi_square = 0.0;
    let mut freedom = -1.0;
    for (&count, &probability) in counts.iter().zip(&expected) {
        if probability == 0.0 {
            assert_eq!(count, 0, "an excluded character was sampled");
            continue;
        }
        let mean = probability * DRAWS as f64;
        chi_square += (count as f64 - mean).powi(2) / mean;
        freedom += 1.0;
    }
    // The 99.99 % quantile of chi-square (Wilson and Hilferty, 1931).
    let spread = 2.0 / (9.0 * f64::max(freedom, 1.0));
    let limit = f64::max(freedom, 1.0) * (1.0 - spread + 3.72 * f64::sqrt(spread)).powi(3);
    assert!(chi_square < limit, "chi-square {chi_square}, limit {limit}");
}

#[test]
fn a_hundred_thousand_samples_follow_the_exact_probabilities() {
    assert_distribution(1.0, 0, 1.0, 0.0);
    assert_distribution(0.7, 0, 1.0, 0.0);
    assert_distribution(1.3, 3, 1.0, 0.0);
    assert_distribution(1.0, 18, 1.0, 0.0);
    assert_distribution(1.0, 0, 0.8, 0.0);
    assert_distribution(1.0, 0, 1.0, 0.1);
    assert_distribution(0.9, 10, 0.9, 0.05);
}

#[test]
fn temperature_zero_and_top_one_select_the_most_probable_and_the_first_of_equals() {
    let logits = [0.5, 2.0, f32::NAN, 2.0];
    let mut sampler = Sampler::default();
    for settings in [
        SamplingSettings::greedy(),
        settings(0.0, 3, 0.5, 0.0),
        settings(1.0, 1, 1.0, 0.0),
    ] {
        assert_eq!(sampler.choose(&settings, &logits, 0.999), 1);
    }
}

#[test]
fn top_k_keeps_the_lower_token_ids_of_equal_logits_with_either_algorithm() {
    let logits = [1.0; 40];
    let mut sampler = Sampler::default();
    for top_k in [3, 16, 17, 30] {
        let highest = sampler.choose(&settings(1.0, top_k, 1.0, 0.0), &logits, 0.999_999);
        assert_eq!(highest, top_k - 1);
    }
}

#[test]
fn logits_that_are_not_finite_still_give_a_character_of_the_vocabulary() {
    let mut sampler = Sampler::default();
    for logits in [
        [f32::NAN; 4],
        [f32::NEG_INFINITY; 4],
        [f32::INFINITY; 4],
        [f32::NAN, f32::INFINITY, 1.0, f32::NEG_INFINITY],
    ] {
        for temperature in [0.0, 1e-308, 1.0, 100.0] {
            let settings = settings(temperature, 2, 0.9, 0.1);
            assert!(sampler.choose(&settings, &logits, 0.999) < 4);
        }
    }
}

#[test]
fn the_generator_continues_from_a_stored_position() {
    let mut uninterrupted = Draws::at(RandomState::seeded(5));
    let expected: Vec<f64> = (0..100).map(|_| uninterrupted.uniform()).collect();
    for start in [0u64, 1, 7, 63, 64, 99] {
        let mut later = Draws::at(RandomState::seeded(5).after(start));
        assert_eq!(later.uniform(), expected[start as usize]);
        assert_eq!(later.state().draws, start + 1);
    }
}

#[test]
fn settings_outside_their_limits_are_reported_with_limit_and_value() {
    let error = SamplingSettings::new(-0.5, 0, 1.0, 0.0).unwrap_err();
    assert_eq!(error.field, "temperature");
    assert_eq!(error.to_string(), "must be 0 to 100, not -0.5");
    for (temperature, top_p, min_p, field) in [
        (f64::NAN, 1.0, 0.0, "temperature"),
        (f64::INFINITY, 1.0, 0.0, "temperature"),
        (1.0, 0.0, 0.0, "top_p"),
        (1.0, 1.1, 0.0, "top_p"),
        (1.0, 1.0, f64::NAN, "min_p"),
    ] {
        let error = SamplingSettings::new(temperature, 0, top_p, min_p).unwrap_err();
        assert_eq!(error.field, field);
    }
}

#[test]
fn log_probabilities_are_those_of_the_models_distribution() {
    let logits = logits();
    let probabilities = exact(1.0, 0, 1.0, 0.0);
    for (token, probability) in (0..).zip(probabilities) {
        let error = log_probability(&logits, token) - probability.ln();
        assert!(error.abs() < 1e-12);
    }
}

#[test]
fn the_highest_logits_give_the_choice_of_all_also_among_equals_and_both_zeros() {
    let mut sampler = Sampler::default();
    // Few different values, so that many are equal.
    let logits: Vec<f32> = (0..700u32)
        .map(|i| [-1.0, 0.0, -0.0, 0.0, 2.5, -0.0, -7.0][(i * i % 7) as usize])
        .collect();
    for logits in [&logits[..], &logits[..17], &logits[5..40]] {
        let (ids, values, log_sum_exp) = highest(logits);
        let highest = HighestLogits {
            ids: &ids,
            logits: &values,
            log_sum_exp,
        };
        for (temperature, top_k, top_p, min_p) in [
            (0.0, 0, 1.0, 0.0),
            (1.0, 1, 1.0, 0.0),
            (1.0, 5, 1.0, 0.0),
            (2.0, 16, 1.0, 0.0),
            (1.0, 16, 0.6, 0.0),
            (3.0, 16, 1.0, 0.3),
        ] {
            let settings = settings(temperature, top_k, top_p, min_p);
            assert!(settings.need_only_highest());
            for draw in 0..100 {
                let uniform = f64::from(draw) / 100.0;
                let expected = sampler.choose(&settings, logits, uniform);
                let chosen = sampler.choose_of_highest(&settings, &highest, uniform);
                assert_eq!(chosen, expected, "{settings:?} {uniform}");
                let expected = log_probability(logits, expected).to_bits();
                assert_eq!(highest.log_probability(chosen).to_bits(), expected);
            }
        }
    }
    assert!(!settings(1.0, 17, 1.0, 0.0).need_only_highest());
    assert!(!settings(1.0, 0, 1.0, 0.0).need_only_highest());
}
