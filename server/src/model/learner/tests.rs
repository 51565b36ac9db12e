use super::*;

fn config(threads: usize) -> LearnerConfig {
    LearnerConfig {
        architecture: Architecture {
            vocabulary_size: 9,
            hidden_size: 12,
            num_layers: 2,
        },
        batch_size: 5,
        sequence_length: 8,
        epochs: 3,
        dropout: 0.3,
        learning_rate: 0.01,
        clip_norm: 5.0,
        seed: 7,
        threads,
        device: Device::Cpu,
    }
}

fn text() -> Arc<[u32]> {
    (0..170u32).map(|i| (i * i + i / 5) % 9).collect()
}

fn run(learner: &mut Learner, steps: usize) -> Vec<StepOutcome> {
    (0..steps)
        .map(|_| learner.step().expect("a step"))
        .collect()
}

#[test]
fn a_training_that_was_stopped_and_resumed_is_bit_for_bit_the_same() {
    for threads in [1, 2] {
        let mut straight = Learner::new(config(threads), text(), None).expect("a learner");
        let expected = run(&mut straight, 10);
        for stop in [1, 4, 6] {
            let mut first = Learner::new(config(threads), text(), None).expect("a learner");
            let mut outcomes = run(&mut first, stop);
            let snapshot = first.snapshot().expect("a snapshot");
            drop(first);
            let mut second =
                Learner::restore(config(threads), text(), snapshot).expect("a learner");
            outcomes.extend(run(&mut second, 10 - stop));
            assert_eq!(outcomes, expected, "stopped after {stop}");
            assert_eq!(
                second.snapshot().expect("one"),
                straight.snapshot().expect("one")
            );
        }
    }
}

#[test]
fn the_loss_falls_on_a_text_with_a_rule() {
    let text: Arc<[u32]> = (0..2000u32).map(|i| i % 9).collect();
    let mut learner = Learner::new(config(2), text.clone(), None).expect("a learner");
    let outcomes = run(&mut learner, 150);
    assert!(outcomes[0].loss > 2.0, "{:?}", outcomes[0]);
    // One target in eight is wrapped around and breaks the rule.
    let loss = learner.evaluate(&text).expect("a loss");
    assert!(loss < 0.6, "{loss}");
    let epochs: Vec<u32> = [0, 49, 50, 149].map(|step| outcomes[step].epoch).to_vec();
    assert_eq!(epochs, [1, 1, 2, 3]);
    let ends: Vec<u64> = outcomes
        .iter()
        .filter(|outcome| outcome.epoch_loss.is_some())
        .map(|outcome| outcome.step)
        .collect();
    assert_eq!(ends, [50, 100, 150]);
}

#[test]
fn a_snapshot_of_another_network_is_refused() {
    let learner = Learner::new(config(1), text(), None).expect("a learner");
    let mut snapshot = learner.snapshot().expect("a snapshot");
    snapshot.parameters.pop();
    let error = Learner::restore(config(1), text(), snapshot)
        .err()
        .expect("refused");
    assert!(error.to_string().contains("parameters"), "{error}");
}
