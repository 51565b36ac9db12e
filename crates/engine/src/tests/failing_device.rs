//! A device that fails: as a GPU does that traps or is lost.

use std::sync::atomic::AtomicBool;

use charlstm_model::decode_step::{
    Arithmetic, BatchBackend, Chunk, DecodeError, DecodeWeights, HiddenState, HighestOfRows,
    WeightLayout,
};
use charlstm_model::sampler::highest;

use super::*;

/// The CPU, until it fails; batches made afterwards work again, as those of a
/// GPU do that is replaced by the CPU. As a GPU, it is given several prompts at
/// once, and selects the highest logits.
#[derive(Debug, Default)]
struct FailingDevice {
    has_failed: Arc<AtomicBool>,
    /// Numbers of prompts that were fed at once.
    prefills: Arc<Mutex<Vec<usize>>>,
}

/// Prompts that the device feeds at once.
const PREFILL_WIDTH: usize = 8;

#[derive(Debug)]
struct FailingWeights {
    inner: Arc<DecodeWeights>,
    has_failed: Arc<AtomicBool>,
    prefills: Arc<Mutex<Vec<usize>>>,
}

struct FailingBatch {
    inner: Box<dyn BatchBackend>,
    has_failed: Arc<AtomicBool>,
    prefills: Arc<Mutex<Vec<usize>>>,
    /// Of the last step, for all rows.
    ids: Vec<u32>,
    logits: Vec<f32>,
    log_sums: Vec<f64>,
    /// The device works for this batch, whatever happens to others.
    is_sound: bool,
}

impl DecodeDevice for FailingDevice {
    fn prepare(&self, parameters: &Parameters) -> Result<DecodeWeights, DecodeError> {
        let weights = FailingWeights {
            inner: Arc::new(Int8Processor::default().prepare(parameters)?),
            has_failed: Arc::clone(&self.has_failed),
            prefills: Arc::clone(&self.prefills),
        };
        Ok(DecodeWeights::new(
            parameters.architecture,
            Box::new(weights),
        ))
    }
}

impl WeightLayout for FailingWeights {
    fn arithmetic(&self) -> Arithmetic {
        Arithmetic::INT8
    }

    fn bytes(&self) -> usize {
        self.inner.bytes()
    }

    fn batch(&self, max_rows: usize) -> Result<Box<dyn BatchBackend>, DecodeError> {
        Ok(Box::new(FailingBatch {
            inner: self.inner.backend(max_rows)?,
            has_failed: Arc::clone(&self.has_failed),
            prefills: Arc::clone(&self.prefills),
            ids: Vec::new(),
            logits: Vec::new(),
            log_sums: Vec::new(),
            is_sound: self.has_failed.load(Ordering::SeqCst),
        }))
    }
}

impl FailingBatch {
    fn check(&self) -> Result<(), DecodeError> {
        if self.has_failed.load(Ordering::SeqCst) && !self.is_sound {
            return Err(DecodeError("the device is lost".into()));
        }
        Ok(())
    }
}

impl BatchBackend for FailingBatch {
    fn write(&mut self, row: usize, state: &HiddenState) -> Result<(), DecodeError> {
        self.check()?;
        self.inner.write(row, state)
    }

    fn read(&self, row: usize) -> Result<HiddenState, DecodeError> {
        self.check()?;
        self.inner.read(row)
    }

    fn move_last(&mut self, from: usize, to: usize) -> Result<(), DecodeError> {
        self.check()?;
        self.inner.move_last(from, to)
    }

    fn step(&mut self, tokens: &[u32]) -> Result<&[f32], DecodeError> {
        self.check()?;
        self.inner.step(tokens)
    }

    fn selects_highest(&self) -> bool {
        true
    }

    fn step_highest(&mut self, tokens: &[u32]) -> Result<HighestOfRows<'_>, DecodeError> {
        self.check()?;
        self.ids.clear();
        self.logits.clear();
        self.log_sums.clear();
        let all = self.inner.step(tokens)?;
        for row in all.chunks_exact(all.len() / tokens.len()) {
            let (ids, logits, log_sum) = highest(row);
            self.ids.extend(ids);
            self.logits.extend(logits);
            self.log_sums.push(log_sum);
        }
        let count = self.ids.len() / tokens.len();
        Ok(HighestOfRows {
            ids: &self.ids,
            logits: &self.logits,
            log_sums: &self.log_sums,
            count,
            stride: count,
        })
    }

    fn prefill_width(&self) -> usize {
        PREFILL_WIDTH
    }

    fn prefill_all(&mut self, chunks: &mut [Chunk<'_>]) -> Result<(), DecodeError> {
        self.check()?;
        self.prefills.lock().unwrap().push(chunks.len());
        self.inner.prefill_all(chunks)
    }

    fn prefill(
        &mut self,
        state: &mut HiddenState,
        tokens: &[u32],
        logits: Option<&mut Vec<f32>>,
    ) -> Result<(), DecodeError> {
        self.check()?;
        self.inner.prefill(state, tokens, logits)
    }
}

/// An engine whose model `m@1` is on a device.
fn start_on_device() -> (Engine, FailingDevice) {
    let device = FailingDevice::default();
    let (engine, models) = start_in(
        Precision::Int8,
        EngineConfig {
            workers: 1,
            ..config()
        },
        Arc::new(MemorySessions::new(SessionLimits::default())),
    );
    let id = models.add("m", 1, 1);
    let on_device = Arc::new(model(&id, 1, &parameters(1, 20), &device));
    let mut all = models.models.lock().unwrap();
    all.get_mut(&id).unwrap().int8 = on_device;
    drop(all);
    (engine, device)
}

/// Reads to the end, and returns the text before the error.
async fn read_to_error(stream: &mut GenerationStream) -> (String, GenerateError) {
    let mut text = String::new();
    loop {
        match stream.next().await.unwrap() {
            Ok(GenerationEvent::Text(event)) => text.push_str(&event.text),
            Ok(GenerationEvent::Started(_)) => {}
            Ok(GenerationEvent::Finished(_)) => panic!("the text must fail"),
            Err(error) => return (text, error),
        }
    }
}

#[tokio::test]
async fn the_calls_on_a_failed_device_end_and_their_sessions_continue_with_the_same_text() {
    let (engine, FailingDevice { has_failed, .. }) = start_on_device();
    let expected = whole(&engine, seeded_call("reference", "abc", 3_000)).await;
    let long = seeded_call("s", "abc", 1_000_000);
    let mut stream = engine.generate(long).await.unwrap();
    let mut idle = engine.generate(call("abc", 1_000_000)).await.unwrap();
    let mut got = String::new();
    while got.len() < 100 {
        if let GenerationEvent::Text(event) = stream.next().await.unwrap().unwrap() {
            got.push_str(&event.text);
        }
    }
    has_failed.store(true, Ordering::SeqCst);
    let (more, error) = read_to_error(&mut stream).await;
    got.push_str(&more);
    assert!(error.to_string().contains("the device is lost"), "{error}");
    let (_, error) = read_to_error(&mut idle).await;
    assert!(error.to_string().contains("the device is lost"), "{error}");

    let rest = whole(&engine, session_call("s", "", 200)).await;
    assert_eq!(rest.started.position, 3 + got.len() as u64);
    got.push_str(&rest.text);
    let compared = got.len().min(expected.text.len());
    assert_eq!(got[..compared], expected.text[..compared]);
    engine.stop().await.unwrap();
}

#[tokio::test]
async fn a_device_that_fails_while_nothing_is_generated_is_replaced_at_the_next_call() {
    let (engine, FailingDevice { has_failed, .. }) = start_on_device();
    let expected = whole(&engine, call("abc", 50)).await;
    has_failed.store(true, Ordering::SeqCst);
    let failed = engine.generate(call("abc abc abc", 50)).await.unwrap();
    let error = read(failed).await.unwrap_err();
    assert!(error.to_string().contains("the device is lost"), "{error}");
    assert_eq!(whole(&engine, call("abc", 50)).await.text, expected.text);
    let scored = score(&engine, &["abc"]).await;
    assert!(scored.is_ok());
    engine.stop().await.unwrap();
}

#[tokio::test]
async fn prompts_that_a_device_feeds_at_once_give_the_text_of_each_alone() {
    let storage = Arc::new(MemorySessions::new(SessionLimits::default()));
    let (on_cpu, _) = start_in(Precision::Int8, config(), storage);
    let (engine, FailingDevice { prefills, .. }) = start_on_device();
    // None begins like another one, whose state would be kept.
    let calls = (0..16).map(|number| {
        let letter = |at: usize| char::from(b"abc"[(at * (number + 1) + at / 3 + number) % 3]);
        let prompt: String = (0..1 + number * 170).map(letter).collect();
        call(&prompt, 30)
    });
    let mut alone = Vec::new();
    for call in calls.clone() {
        alone.push(text(&on_cpu, call).await);
    }
    let together = calls.map(|call| text(&engine, call));
    assert_eq!(futures_util::future::join_all(together).await, alone);
    let largest = prefills.lock().unwrap().iter().copied().max();
    assert_eq!(largest, Some(PREFILL_WIDTH));
    on_cpu.stop().await.unwrap();
    engine.stop().await.unwrap();
}

#[tokio::test]
async fn a_text_sampled_from_the_highest_logits_is_that_of_all_logits() {
    let storage = Arc::new(MemorySessions::new(SessionLimits::default()));
    let (on_cpu, _) = start_in(Precision::Int8, config(), storage);
    let (engine, _) = start_on_device();
    let settings = [
        (0.0, 0, 1.0, 0.0),
        (1.0, 1, 1.0, 0.0),
        (1.0, 3, 1.0, 0.0),
        (0.7, 16, 1.0, 0.0),
        (1.5, 10, 0.8, 0.0),
        (1.0, 12, 1.0, 0.1),
        (1.0, 17, 1.0, 0.0),
        (1.0, 0, 0.9, 0.0),
    ];
    let calls = settings.map(|(temperature, top_k, top_p, min_p)| GenerateCall {
        settings: SamplingSettings::new(temperature, top_k, top_p, min_p).unwrap(),
        logprobs: true,
        ..call("abc", 300)
    });
    for call in &calls {
        let expected = whole(&on_cpu, call.clone()).await;
        let text = whole(&engine, call.clone()).await;
        assert_eq!(text.text, expected.text, "{:?}", call.settings);
        assert_eq!(text.logprobs, expected.logprobs, "{:?}", call.settings);
    }
    // Next to a call that needs all logits, the others are sampled from all.
    let together = calls.clone().map(|call| text(&engine, call));
    let mut expected = Vec::new();
    for call in calls {
        expected.push(text(&on_cpu, call).await);
    }
    assert_eq!(futures_util::future::join_all(together).await, expected);
    on_cpu.stop().await.unwrap();
    engine.stop().await.unwrap();
}
