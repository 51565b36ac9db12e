//! Finds the network in a checkpoint: the dict that has its tensors, wherever it
//! is, and the names of its layers, whatever stands before them. Says what the
//! file contains if it is another network.

use std::collections::{BTreeMap, HashSet, VecDeque};

use super::TorchCheckpointError;
use super::pickle::{Node, NodeId, Pickle, PickledTensor};
use super::sizes;
use crate::architecture::Architecture;
use crate::model_file::{MAX_LAYERS, shortened};

/// Maximum depth of the dicts that are searched: a checkpoint in a dict of a
/// training framework has 2.
const MAX_DEPTH: usize = 4;

/// Number of names that an error lists.
const MAX_NAMES: usize = 8;

/// Last part of the name of the tensor by which an LSTM is recognised.
const INPUT_WEIGHT: &str = "weight_ih_l0";

/// Name of the output layer in the notebook.
const OUTPUT: &str = "fc";

/// The tensors of a checkpoint, and which of them are the network.
#[derive(Debug)]
pub(super) struct Network<'a> {
    tensors: BTreeMap<&'a str, &'a PickledTensor>,
    /// What stands before the names of the tensors of the LSTM, with a dot at
    /// the end unless it is empty.
    lstm: String,
    /// What stands before `weight` and `bias` of the output layer.
    output: String,
    /// The dict of the tensors and those around it, from the inside.
    pub(super) around: Vec<&'a Node>,
}

/// A dict of the checkpoint.
struct Candidate<'a> {
    around: Vec<&'a Node>,
    tensors: BTreeMap<&'a str, &'a PickledTensor>,
}

impl<'a> Network<'a> {
    /// Finds the network.
    ///
    /// # Errors
    /// There is none, or one that this program does not have.
    pub(super) fn find(pickle: &'a Pickle) -> Result<Self, TorchCheckpointError> {
        let mut candidates = dicts_with_tensors(pickle);
        let found = candidates
            .iter()
            .position(|candidate| lstms(&candidate.tensors).next().is_some());
        let Some(found) = found else {
            return Err(other_content(pickle, &candidates));
        };
        let Candidate { around, tensors } = candidates.swap_remove(found);
        let lstms: Vec<&str> = lstms(&tensors).collect();
        let &[lstm] = lstms.as_slice() else {
            let layers = names(lstms.iter().copied());
            return Err(TorchCheckpointError::OtherNetwork(format!(
                "several recurrent layers ({layers})"
            )));
        };
        let lstm = lstm.to_owned();
        check_recurrent(&tensors, &lstm)?;
        Ok(Self {
            output: output_layer(&tensors, &lstm)?,
            tensors,
            lstm,
            around,
        })
    }

    /// Returns the architecture that the shapes imply. The shapes of all
    /// tensors are to be checked against it.
    pub(super) fn architecture(&self) -> Architecture {
        let shape = |name: &str| self.get(name).map_or(Vec::new(), |it| sizes(&it.1.shape));
        let output = shape("fc.weight");
        let num_layers = (0..=MAX_LAYERS)
            .take_while(|layer| self.get(&format!("lstm.weight_hh_l{layer}")).is_some())
            .count();
        Architecture {
            vocabulary_size: output.first().copied().unwrap_or_default(),
            hidden_size: output.get(1).copied().unwrap_or_default(),
            num_layers,
        }
    }

    /// Returns a tensor by its name in the notebook (`lstm.weight_ih_l0`,
    /// `fc.bias`), with its name in the file.
    pub(super) fn get(&self, name: &str) -> Option<(String, &'a PickledTensor)> {
        let name = self.name_in_file(name);
        let tensor = self.tensors.get(name.as_str())?;
        Some((name, tensor))
    }

    /// Returns the name in the file of a tensor of the notebook.
    pub(super) fn name_in_file(&self, name: &str) -> String {
        match name.split_once('.') {
            Some((layer, rest)) if layer == OUTPUT => format!("{}{rest}", self.output),
            Some((_, rest)) => format!("{}{rest}", self.lstm),
            None => name.to_owned(),
        }
    }
}

/// Returns all dicts that have tensors, those nearest to the root first. What
/// an optimizer keeps has the names of no layers.
fn dicts_with_tensors(pickle: &Pickle) -> Vec<Candidate<'_>> {
    let mut candidates = Vec::new();
    let mut seen = HashSet::new();
    let mut queue = VecDeque::from([vec![pickle.root_id()]]);
    while let Some(path) = queue.pop_front() {
        let id = *path.last().expect("a path has a node");
        let Node::Dict(entries) = pickle.node(id) else {
            continue;
        };
        if !seen.insert(id) {
            continue;
        }
        let mut tensors = BTreeMap::new();
        for &(key, value) in entries {
            match (pickle.node(key), pickle.node(value)) {
                (Node::Text(name), Node::Tensor(tensor)) => {
                    // As in Python, the last of several values of a key counts.
                    tensors.insert(&**name, tensor);
                }
                (_, Node::Dict(_)) if path.len() < MAX_DEPTH => {
                    queue.push_back([path.as_slice(), &[value]].concat());
                }
                _ => {}
            }
        }
        if !tensors.is_empty() {
            let around = path.iter().rev().map(|&id: &NodeId| pickle.node(id));
            candidates.push(Candidate {
                around: around.collect(),
                tensors,
            });
        }
    }
    candidates
}

/// Returns what stands before the names of recurrent layers.
fn lstms<'t>(tensors: &'t BTreeMap<&str, &PickledTensor>) -> impl Iterator<Item = &'t str> {
    tensors.keys().filter_map(|name| {
        let before = name.strip_suffix(INPUT_WEIGHT)?;
        (before.is_empty() || before.ends_with('.')).then_some(before)
    })
}

/// Rejects recurrent layers that are not those of the notebook.
fn check_recurrent(
    tensors: &BTreeMap<&str, &PickledTensor>,
    lstm: &str,
) -> Result<(), TorchCheckpointError> {
    let other = |what: &str, name: String| {
        let name = shortened(&name);
        Err(TorchCheckpointError::OtherNetwork(format!(
            "{what} ({name})"
        )))
    };
    for (suffix, what) in [
        ("weight_ih_l0_reverse", "a bidirectional layer"),
        ("weight_hr_l0", "an LSTM with projections"),
    ] {
        let name = format!("{lstm}{suffix}");
        if tensors.contains_key(name.as_str()) {
            return other(what, name);
        }
    }
    let name = format!("{lstm}weight_hh_l0");
    let shape = tensors
        .get(name.as_str())
        .map(|tensor| sizes(&tensor.shape));
    match shape.as_deref() {
        Some(&[rows, hidden]) if hidden > 0 && rows == 3 * hidden => other("a GRU", name),
        Some(&[rows, hidden]) if hidden > 0 && rows == hidden => {
            other("a simple recurrent layer", name)
        }
        _ => Ok(()),
    }
}

/// Returns what stands before `weight` and `bias` of the output layer: `fc`
/// next to the LSTM, or the only layer whose shape fits.
fn output_layer(
    tensors: &BTreeMap<&str, &PickledTensor>,
    lstm: &str,
) -> Result<String, TorchCheckpointError> {
    let outer = lstm
        .trim_end_matches('.')
        .rsplit_once('.')
        .map_or(String::new(), |(outer, _)| format!("{outer}."));
    let shape = |name: &str| tensors.get(name).map(|tensor| sizes(&tensor.shape));
    let input = shape(&format!("{lstm}{INPUT_WEIGHT}"));
    let recurrent = shape(&format!("{lstm}weight_hh_l0"));
    let width = |shape: Option<Vec<usize>>| shape.and_then(|shape| shape.get(1).copied());
    let (inputs, hidden) = (width(input), width(recurrent));
    let fc = format!("{outer}{OUTPUT}.");
    let layer = if tensors.contains_key(format!("{fc}weight").as_str()) {
        Some(fc)
    } else {
        let mut fitting = tensors.keys().filter_map(|name| {
            let layer = name.strip_suffix("weight")?;
            let shape = shape(name)?;
            let has_bias = tensors.contains_key(format!("{layer}bias").as_str());
            (has_bias && shape.len() == 2 && shape.get(1).copied() == hidden).then_some(layer)
        });
        let first = fitting.next().map(str::to_owned);
        first.filter(|_| fitting.next().is_none())
    };
    let Some(layer) = layer else {
        return Err(TorchCheckpointError::NoOutputLayer {
            tensors: names(tensors.keys().copied()),
        });
    };
    let outputs = shape(&format!("{layer}weight")).and_then(|shape| shape.first().copied());
    match (inputs, outputs) {
        // A wrong number of gates is reported with the shape.
        (Some(inputs), Some(outputs)) if inputs != outputs => {
            Err(TorchCheckpointError::OtherNetwork(format!(
                "an input of {inputs} values for {outputs} characters, as after an embedding; \
                 the notebook's takes one value for each character"
            )))
        }
        _ => Ok(layer),
    }
}

/// Says what a file without an LSTM contains.
fn other_content(pickle: &Pickle, candidates: &[Candidate<'_>]) -> TorchCheckpointError {
    let largest = candidates.iter().max_by_key(|it| it.tensors.len());
    if let Some(largest) = largest {
        return TorchCheckpointError::NoLstm {
            tensors: names(largest.tensors.keys().copied()),
        };
    }
    let Node::Dict(entries) = pickle.root() else {
        return TorchCheckpointError::NoStateDict {
            content: "it is not a dict".to_owned(),
        };
    };
    let keys = entries
        .iter()
        .filter_map(|&(key, _)| match pickle.node(key) {
            Node::Text(key) => Some(&**key),
            _ => None,
        });
    TorchCheckpointError::NoStateDict {
        content: format!("its entries are {}", names(keys)),
    }
}

/// Lists names of a file, as many as fit into a message.
fn names<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let mut names: Vec<String> = names.map(|name| format!("{:?}", shortened(name))).collect();
    if names.is_empty() {
        return "none".to_owned();
    }
    let more = names.len().saturating_sub(MAX_NAMES);
    names.truncate(MAX_NAMES);
    let list = names.join(", ");
    match more {
        0 => list,
        more => format!("{list} and {more} more"),
    }
}
