//! Hashes of texts that every machine must generate, with each of its kernels.
//! If one changes, the arithmetic or the sampler has changed: that needs a new
//! revision, not a new hash.

use charlstm_model::decode_step::ARITHMETIC_REVISION;
use charlstm_model::kernels::{FloatKernels, Kernel};
use sha2::{Digest, Sha256};

use super::*;

/// A network, and the hash of its texts in float32 and in int8.
struct Golden {
    vocabulary: usize,
    hidden: usize,
    layers: usize,
    float32: &'static str,
    int8: &'static str,
}

const GOLDEN: [Golden; 5] = [
    golden(1, 9, 1, "070cb615d5739ec1", "070cb615d5739ec1"),
    golden(78, 37, 1, "f6616ebfa714acf1", "e754efd873638747"),
    golden(78, 64, 2, "c06f4b2e55f47ff1", "0133832dc5ace414"),
    golden(78, 37, 3, "cc3ef2a02fea6c86", "b3787aa21b7560ca"),
    golden(5000, 21, 2, "1d010e16c69f4a9c", "5f9d44be04e4ab57"),
];

const fn golden(
    vocabulary: usize,
    hidden: usize,
    layers: usize,
    float32: &'static str,
    int8: &'static str,
) -> Golden {
    Golden {
        vocabulary,
        hidden,
        layers,
        float32,
        int8,
    }
}

/// Characters of each text, and of its prompt.
const CHARS: u64 = 150;
const PROMPT_CHARS: usize = 70;

/// Sampling settings of the texts: all ways to choose a character.
fn settings(text: usize) -> SamplingSettings {
    let settings = [
        (1.0, 0, 1.0, 0.0),
        (0.8, 3, 1.0, 0.0),
        (1.3, 20, 0.9, 0.0),
        (1.0, 0, 0.7, 0.05),
    ];
    let (temperature, top_k, top_p, min_p) = settings[text % 4];
    SamplingSettings::new(temperature, top_k, top_p, min_p).unwrap()
}

fn vocabulary(size: usize) -> Vocabulary {
    Vocabulary::of((0x4E00..).filter_map(char::from_u32).take(size))
}

fn network(golden: &Golden) -> Parameters {
    let architecture = Architecture {
        vocabulary_size: golden.vocabulary,
        hidden_size: golden.hidden,
        num_layers: golden.layers,
    };
    filled(architecture, golden.hidden as u64)
}

/// A call of the text with this number.
fn golden_call(golden: &Golden, text: usize) -> GenerateCall {
    let characters = vocabulary(golden.vocabulary);
    let prompt = (0..PROMPT_CHARS)
        .map(|i| characters.character(((i * (text + 3) + text) % golden.vocabulary) as u32))
        .collect();
    GenerateCall {
        prompt,
        seed: Some(text as u64),
        settings: settings(text),
        ..call("", CHARS)
    }
}

/// Starts an engine with one model.
fn start_golden(golden: &Golden, device: &dyn DecodeDevice, workers: usize) -> Engine {
    let id = ModelId {
        name: "golden".to_owned(),
        version: 1,
    };
    let weights = Arc::new(device.prepare(&network(golden)).unwrap());
    let model = Arc::new(LoadedModel {
        digest: [1; 32],
        id: id.clone(),
        vocabulary: vocabulary(golden.vocabulary),
        replacement: 'e',
        check: check(&weights).unwrap(),
        weights,
    });
    let models = TestModels::new(model.precision());
    // The same in both places: calls name no precision.
    let both = TestModel {
        float32: Arc::clone(&model),
        int8: model,
    };
    models.models.lock().unwrap().insert(id, both);
    let config = EngineConfig {
        workers,
        max_batch: 128,
        max_queue: 128,
        ..config()
    };
    let storage = Backend::memory().open(SessionLimits::default());
    Engine::start(config, Arc::new(models), storage).unwrap()
}

async fn texts_alone(engine: &Engine, golden: &Golden) -> Vec<String> {
    let mut texts = Vec::new();
    for number in 0..4 {
        texts.push(text(engine, golden_call(golden, number)).await);
    }
    texts
}

/// The texts in sessions, each divided at some positions, and the prompt as
/// well, among 100 others.
async fn texts_among_others(engine: &Engine, golden: &Golden) -> Vec<String> {
    let others = (4..104).map(|number| {
        let mut call = golden_call(golden, number);
        call.max_chars = 20;
        let engine = engine.clone();
        tokio::spawn(async move { text(&engine, call).await })
    });
    let others: Vec<_> = others.collect();
    let texts = (0..4).map(|number| {
        let engine = engine.clone();
        async move {
            let whole = golden_call(golden, number);
            let session = SessionSource::Stored(key(&format!("s{number}")));
            let prompt: Vec<char> = whole.prompt.chars().collect();
            let (first, second) = prompt.split_at(1 + 13 * number);
            let mut joined = String::new();
            let cuts = [0, 1 + 17 * number as u64, 60 + 9 * number as u64, CHARS];
            let beginning = GenerateCall {
                prompt: first.iter().collect(),
                max_chars: 0,
                session: session.clone(),
                ..whole.clone()
            };
            text(&engine, beginning).await;
            for (index, cut) in cuts.windows(2).enumerate() {
                let prompt = if index == 0 { second } else { &[] };
                let part = GenerateCall {
                    prompt: prompt.iter().collect(),
                    max_chars: cut[1] - cut[0],
                    session: session.clone(),
                    seed: None,
                    ..whole.clone()
                };
                joined.push_str(&text(&engine, part).await);
            }
            joined
        }
    });
    let texts = futures_util::future::join_all(texts).await;
    for other in others {
        other.await.unwrap();
    }
    texts
}

fn hash(texts: &[String]) -> String {
    let digest: [u8; 32] = Sha256::digest(texts.concat()).into();
    digest[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kernel_generates_the_golden_texts_alone_divided_and_among_100_others() {
    assert_eq!(ARITHMETIC_REVISION, 1, "the hashes are those of revision 1");
    let mut devices: Vec<(String, Box<dyn DecodeDevice>)> = Vec::new();
    for kernels in FloatKernels::available() {
        devices.push((
            format!("float32 {kernels}"),
            Box::new(Processor { kernels }),
        ));
    }
    for kernel in Kernel::available() {
        devices.push((format!("int8 {kernel}"), Box::new(Int8Processor { kernel })));
    }
    let mut wrong = Vec::new();
    for golden in &GOLDEN {
        for (number, (name, device)) in devices.iter().enumerate() {
            let engine = start_golden(golden, &**device, 1 + number % 2);
            let what = format!(
                "{name}, {} x {}, {} ids",
                golden.layers, golden.hidden, golden.vocabulary
            );
            let texts = texts_alone(&engine, golden).await;
            let expected = if name.starts_with("int8") {
                golden.int8
            } else {
                golden.float32
            };
            if hash(&texts) != expected {
                wrong.push(format!("{what}: {}", hash(&texts)));
            }
            let among = texts_among_others(&engine, golden).await;
            assert!(among == texts, "{what}, divided and among others");
            engine.stop().await.unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
