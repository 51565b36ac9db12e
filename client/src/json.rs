//! Converts protobuf messages to JSON objects for `--json`: fields have their
//! names in the `.proto` files, 64-bit integers are numbers, enum values are
//! names and bytes are base64. A message with a oneof `event` is flattened: the
//! name of the event is in `event`, next to the fields of the event.

use std::sync::OnceLock;

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::{Map, Value};

/// Converts `message`, whose name in the package `charlstm.v1` is `name`.
pub(crate) fn object(name: &str, message: &impl Message) -> Value {
    let descriptor = pool()
        .get_message_by_name(&format!("charlstm.v1.{name}"))
        .expect("every message that is printed is in the contract");
    let dynamic = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice())
        .expect("a message can be decoded with its own descriptor");
    let options = SerializeOptions::new()
        .use_proto_field_name(true)
        .stringify_64_bit_integers(false)
        .skip_default_fields(false);
    dynamic
        .serialize_with_options(serde_json::value::Serializer, &options)
        .expect("a message of the contract has a JSON form")
}

/// Converts a message with a oneof `event`, flattened. A field of the event
/// wins over a field of the message with the same name.
pub(crate) fn event(name: &str, message: &impl Message) -> Value {
    const EVENTS: [&str; 10] = [
        "accepted",
        "step",
        "epoch",
        "checkpoint",
        "checkpoint_failed",
        "resumed",
        "finished",
        "rolled_back",
        "started",
        "text",
    ];
    let mut fields = match object(name, message) {
        Value::Object(fields) => fields,
        other => return other,
    };
    let mut flat = Map::new();
    for event in EVENTS {
        if fields.get(event).is_some_and(Value::is_object)
            && let Some(Value::Object(inner)) = fields.remove(event)
        {
            flat.insert("event".into(), event.into());
            flat.append(&mut fields);
            flat.extend(inner);
            return Value::Object(flat);
        }
    }
    Value::Object(fields)
}

/// Adds the field `event` to an object, for results that are not events in the
/// contract.
pub(crate) fn named(event: &str, value: Value) -> Value {
    let mut flat = Map::new();
    flat.insert("event".into(), event.into());
    match value {
        Value::Object(fields) => flat.extend(fields),
        other => {
            flat.insert("value".into(), other);
        }
    }
    Value::Object(flat)
}

fn pool() -> &'static DescriptorPool {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    POOL.get_or_init(|| {
        DescriptorPool::decode(charlstm_proto::FILE_DESCRIPTOR_SET)
            .expect("the build script generated the descriptor set")
    })
}

#[cfg(test)]
mod tests {
    use charlstm_proto::v1::{
        GenerateResponse, GeneratedText, GenerationFinished, StepProgress, TrainResponse,
        generate_response, train_response,
    };
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_is_flattened_into_its_message() {
        let message = GenerateResponse {
            event: Some(generate_response::Event::Text(GeneratedText {
                text: "a".into(),
                logprobs: vec![],
                position: u64::MAX,
            })),
        };
        assert_eq!(
            event("GenerateResponse", &message),
            json!({"event": "text", "text": "a", "logprobs": [], "position": u64::MAX})
        );
    }

    #[test]
    fn a_field_with_the_same_name_as_its_event_is_kept() {
        let message = TrainResponse {
            training_id: "t".into(),
            sequence: 3,
            event: Some(train_response::Event::Step(StepProgress {
                epoch: 1,
                step: 7,
                ..Default::default()
            })),
        };
        let value = event("TrainResponse", &message);
        assert_eq!(value["event"], "step");
        assert_eq!(value["step"], 7);
        assert_eq!(value["training_id"], "t");
        assert_eq!(value["loss"], 0.0);
    }

    #[test]
    fn enum_values_are_names() {
        let message = GenerateResponse {
            event: Some(generate_response::Event::Finished(GenerationFinished {
                reason: 1,
                chars: 2,
                position: 3,
                seconds: 0.5,
                ..Default::default()
            })),
        };
        let value = event("GenerateResponse", &message);
        assert_eq!(value["reason"], "FINISH_REASON_LENGTH");
    }
}
