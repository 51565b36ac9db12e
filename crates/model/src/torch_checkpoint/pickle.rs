//! Reads the pickle in a `torch.save` file without executing any of it. Only
//! the instructions and names that a `state_dict` needs are supported, and a
//! name stands for a kind of data, never for code. The parent module interprets
//! the data.
//!
//! Source of the format: Python's `pickletools`, protocols 2 to 5.

use std::collections::HashMap;
use std::io::Read;
use std::rc::Rc;

use super::TorchCheckpointError;

/// Maximum memory for the values of a pickle, in bytes. A vocabulary of 65,536
/// characters takes about 9 MiB, everything else in a checkpoint some 10 KiB.
const MAX_MEMORY_BYTES: usize = 32 * 1024 * 1024;

/// Maximum length of a storage key in bytes. PyTorch uses decimal numbers.
const MAX_KEY_BYTES: usize = 256;

/// Maximum length of a module or of a name in a module, in bytes. The longest
/// supported one has 18.
const MAX_NAME_BYTES: usize = 200;

/// Maximum number of dimensions of a tensor; those of a network have 2.
const MAX_DIMENSIONS: usize = 8;

/// Index of a node within its pickle. Nodes refer to each other by index, so
/// that cycles and deep nesting do no harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct NodeId(usize);

/// A value in the pickle.
#[derive(Debug, PartialEq)]
pub(super) enum Node {
    /// `None` or a floating-point number: no entry that is read has such a value.
    Ignored,
    Bool(bool),
    /// Wide enough for the magic number of the legacy format.
    Int(i128),
    Text(Rc<str>),
    /// A tuple or a list.
    Sequence(Vec<NodeId>),
    /// Keys and values in the order of insertion; a key may occur twice.
    Dict(Vec<(NodeId, NodeId)>),
    Global(Global),
    Storage(PickledStorage),
    Tensor(PickledTensor),
}

/// A name that a pickle may refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(ElementType),
    /// A kind of data that no network needs: a call of it gives
    /// [`Node::Ignored`].
    Data,
}

/// Type of the elements of a storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ElementType {
    F64,
    F32,
    F16,
    Bf16,
    /// Integers, truth values or complex numbers, of this many bytes. No
    /// network has them.
    Other(u8),
}

impl ElementType {
    /// Returns the size of an element in bytes.
    pub(super) fn bytes(self) -> u64 {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Other(bytes) => bytes.into(),
        }
    }
}

/// A reference to a storage, whose elements are elsewhere in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PickledStorage {
    /// Identifies the storage within the file; at most [`MAX_KEY_BYTES`] long.
    pub(super) key: Rc<str>,
    pub(super) element_type: ElementType,
    /// Number of elements.
    pub(super) count: u64,
}

/// A view of a storage. Offset and strides are in elements.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PickledTensor {
    pub(super) storage: PickledStorage,
    pub(super) offset: u64,
    pub(super) shape: Vec<u64>,
    pub(super) strides: Vec<u64>,
}

/// The content of a pickle.
#[derive(Debug)]
pub(super) struct Pickle {
    nodes: Vec<Node>,
    root: NodeId,
}

impl Pickle {
    /// Reads one pickle, and no byte after its end. Uses at most
    /// [`MAX_MEMORY_BYTES`]; the time is proportional to the length, which the
    /// caller limits.
    ///
    /// # Errors
    /// The pickle is invalid, has an instruction or a name that no `state_dict`
    /// needs, or takes too much memory, or the reader failed.
    pub(super) fn read(reader: impl Read) -> Result<Self, TorchCheckpointError> {
        let mut machine = PickleMachine {
            reader,
            nodes: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            memory_bytes: 0,
        };
        loop {
            let opcode = machine.byte()?;
            if opcode == b'.' {
                let root = machine.pop()?;
                return Ok(Self {
                    nodes: machine.nodes,
                    root,
                });
            }
            machine.execute(opcode)?;
        }
    }

    /// Returns the value of the whole pickle.
    pub(super) fn root(&self) -> &Node {
        self.node(self.root)
    }

    /// Returns the id of the value of the whole pickle.
    pub(super) fn root_id(&self) -> NodeId {
        self.root
    }

    /// Returns a value of this pickle.
    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// Returns the value of a key, if `node` is a dict that has it.
    pub(super) fn entry(&self, node: &Node, key: &str) -> Option<&Node> {
        let Node::Dict(entries) = node else {
            return None;
        };
        // As in Python, the last of several values of a key counts.
        entries
            .iter()
            .rev()
            .find(|(name, _)| matches!(self.node(*name), Node::Text(text) if **text == *key))
            .map(|&(_, value)| self.node(value))
    }

    /// Returns all references to storages; a storage can occur several times.
    pub(super) fn storages(&self) -> impl Iterator<Item = &PickledStorage> {
        self.nodes.iter().filter_map(|node| match node {
            Node::Storage(storage) => Some(storage),
            _ => None,
        })
    }
}

/// The state of reading a pickle, which is a program for a stack machine.
struct PickleMachine<R> {
    reader: R,
    nodes: Vec<Node>,
    stack: Vec<NodeId>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, NodeId>,
    /// Memory charged so far.
    memory_bytes: usize,
}

impl<R: Read> PickleMachine<R> {
    fn execute(&mut self, opcode: u8) -> Result<(), TorchCheckpointError> {
        match opcode {
            // PROTO and FRAME: the protocol version and a length; not needed.
            0x80 => self.bytes::<1>().map(|_| ()),
            0x95 => self.bytes::<8>().map(|_| ()),
            b'N' | 0x88 | 0x89 | b'K' | b'M' | b'J' | 0x8a | b'G' | b'X' | 0x8c | b'B' | b'C' => {
                let node = self.literal(opcode)?;
                self.push_node(node)
            }
            b'}'
            | b']'
            | b')'
            | b'('
            | b't'
            | b'l'
            | 0x85..=0x87
            | b'a'
            | b'e'
            | b's'
            | b'u'
            | 0x8f
            | 0x90 => self.container(opcode),
            b'c' | 0x93 | b'R' | 0x81 | b'b' | b'Q' => self.object(opcode),
            b'q' | b'r' | 0x94 | b'h' | b'j' => self.memo(opcode),
            other => Err(TorchCheckpointError::Instruction(other)),
        }
    }

    fn literal(&mut self, opcode: u8) -> Result<Node, TorchCheckpointError> {
        Ok(match opcode {
            0x88 => Node::Bool(true),
            0x89 => Node::Bool(false),
            b'K' => Node::Int(self.byte()?.into()),
            b'M' => Node::Int(u16::from_le_bytes(self.bytes()?).into()),
            b'J' => Node::Int(i32::from_le_bytes(self.bytes()?).into()),
            0x8a => self.long()?,
            b'G' => {
                self.bytes::<8>()?;
                Node::Ignored
            }
            // Bytes, which no entry that is read has.
            b'B' => {
                let length = u32::from_le_bytes(self.bytes()?);
                self.skip(length)?
            }
            b'C' => {
                let length = self.byte()?;
                self.skip(length.into())?
            }
            b'X' => {
                let length = u32::from_le_bytes(self.bytes()?);
                Node::Text(self.text(length)?)
            }
            0x8c => {
                let length = self.byte()?;
                Node::Text(self.text(length.into())?)
            }
            _ => Node::Ignored,
        })
    }

    fn container(&mut self, opcode: u8) -> Result<(), TorchCheckpointError> {
        match opcode {
            b'}' => self.push_node(Node::Dict(Vec::new())),
            // A set is read as a list: its order is lost anyway.
            b']' | b')' | 0x8f => self.push_node(Node::Sequence(Vec::new())),
            b'(' => {
                self.charge(size_of::<usize>())?;
                self.marks.push(self.stack.len());
                Ok(())
            }
            b't' | b'l' => {
                let items = self.since_mark()?;
                self.push_node(Node::Sequence(items))
            }
            0x85..=0x87 => {
                let mut items = vec![NodeId(0); usize::from(opcode - 0x84)];
                for item in items.iter_mut().rev() {
                    *item = self.pop()?;
                }
                self.push_node(Node::Sequence(items))
            }
            b'a' => {
                let item = self.pop()?;
                self.append(&[item])
            }
            b'e' | 0x90 => {
                let items = self.since_mark()?;
                self.append(&items)
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.insert(&[key, value])
            }
            _ => {
                let items = self.since_mark()?;
                self.insert(&items)
            }
        }
    }

    fn append(&mut self, items: &[NodeId]) -> Result<(), TorchCheckpointError> {
        self.charge(size_of_val(items))?;
        match self.top()? {
            Node::Ignored => {}
            Node::Sequence(sequence) => sequence.extend_from_slice(items),
            _ => {
                return Err(TorchCheckpointError::Invalid(
                    "its pickle appends to a value that is not a list",
                ));
            }
        }
        Ok(())
    }

    fn insert(&mut self, items: &[NodeId]) -> Result<(), TorchCheckpointError> {
        self.charge(size_of_val(items))?;
        match self.top()? {
            Node::Ignored if items.len().is_multiple_of(2) => {}
            Node::Dict(entries) if items.len().is_multiple_of(2) => {
                entries.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
            }
            _ => {
                return Err(TorchCheckpointError::Invalid(
                    "its pickle inserts into a value that is not a dict",
                ));
            }
        }
        Ok(())
    }

    fn object(&mut self, opcode: u8) -> Result<(), TorchCheckpointError> {
        match opcode {
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                let global = global(&module, &name)?;
                self.push_node(Node::Global(global))
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Node::Text(module), Node::Text(name)) =
                    (&self.nodes[module.0], &self.nodes[name.0])
                else {
                    return Err(TorchCheckpointError::Invalid(
                        "its pickle has a name that is not text",
                    ));
                };
                if module.len().max(name.len()) > MAX_NAME_BYTES {
                    return Err(TorchCheckpointError::Invalid(LONG_NAME));
                }
                let global = global(module, name)?;
                self.push_node(Node::Global(global))
            }
            // REDUCE and NEWOBJ: a call of a name.
            b'R' | 0x81 => {
                let (arguments, callable) = (self.pop()?, self.pop()?);
                self.call(callable, arguments)
            }
            // The attributes of a dict; PyTorch keeps module versions there.
            b'b' => {
                self.pop()?;
                match self.top()? {
                    Node::Dict(_) | Node::Ignored => Ok(()),
                    _ => Err(TorchCheckpointError::Invalid(
                        "its pickle sets attributes of a value that is not a dict",
                    )),
                }
            }
            _ => {
                let id = self.pop()?;
                let storage = self.storage(id)?;
                self.push_node(Node::Storage(storage))
            }
        }
    }

    fn memo(&mut self, opcode: u8) -> Result<(), TorchCheckpointError> {
        let key = match opcode {
            b'q' | b'h' => self.byte()?.into(),
            b'r' | b'j' => u32::from_le_bytes(self.bytes()?),
            _ => u32::try_from(self.memo.len()).unwrap_or(u32::MAX),
        };
        if matches!(opcode, b'h' | b'j') {
            let id = self
                .memo
                .get(&key)
                .copied()
                .ok_or(TorchCheckpointError::Invalid(
                    "its pickle reads a memo entry that was never set",
                ))?;
            return self.push_id(id);
        }
        let top = *self
            .stack
            .last()
            .ok_or(TorchCheckpointError::Invalid(EMPTY_STACK))?;
        // Twice the entry: a hash table has free slots.
        self.charge(2 * size_of::<(u32, NodeId)>())?;
        self.memo.insert(key, top);
        Ok(())
    }

    /// Pushes the value that a call of a known name would return. Nothing is
    /// called, and no text, list or dict is copied.
    fn call(&mut self, callable: NodeId, arguments: NodeId) -> Result<(), TorchCheckpointError> {
        let (Node::Global(global), Node::Sequence(arguments)) =
            (&self.nodes[callable.0], &self.nodes[arguments.0])
        else {
            return Err(TorchCheckpointError::Invalid(
                "its pickle calls a value that is not a name",
            ));
        };
        match (global, arguments.as_slice()) {
            (Global::Data, _) => self.push_node(Node::Ignored),
            (Global::OrderedDict, []) => self.push_node(Node::Dict(Vec::new())),
            (Global::RebuildParameter, &[tensor, ..]) => match &self.nodes[tensor.0] {
                Node::Tensor(_) => self.push_id(tensor),
                _ => Err(TorchCheckpointError::Invalid(
                    "its pickle has a parameter that is not a tensor",
                )),
            },
            (Global::RebuildTensor, &[storage, offset, shape, strides, ..]) => {
                let Node::Storage(storage) = &self.nodes[storage.0] else {
                    return Err(TorchCheckpointError::Invalid(
                        "its pickle has a tensor without a storage",
                    ));
                };
                let tensor = PickledTensor {
                    storage: storage.clone(),
                    offset: self.unsigned(offset)?,
                    shape: self.dimensions(shape)?,
                    strides: self.dimensions(strides)?,
                };
                self.push_node(Node::Tensor(tensor))
            }
            _ => Err(TorchCheckpointError::Invalid(
                "its pickle calls a name with unexpected arguments",
            )),
        }
    }

    /// Interprets `('storage', TYPE, KEY, DEVICE, COUNT)`, which the legacy
    /// format follows by `None`.
    fn storage(&self, id: NodeId) -> Result<PickledStorage, TorchCheckpointError> {
        let invalid = TorchCheckpointError::Invalid("its pickle has an invalid storage reference");
        let Node::Sequence(parts) = &self.nodes[id.0] else {
            return Err(invalid);
        };
        let parts: Vec<&Node> = parts
            .iter()
            .take(6)
            .map(|part| &self.nodes[part.0])
            .collect();
        match parts.as_slice() {
            [
                Node::Text(tag),
                Node::Global(Global::Storage(element_type)),
                Node::Text(key),
                Node::Text(_),
                Node::Int(count),
                view @ ..,
            ] if **tag == *"storage"
                && key.len() <= MAX_KEY_BYTES
                && matches!(view, [] | [Node::Ignored]) =>
            {
                Ok(PickledStorage {
                    key: Rc::clone(key),
                    element_type: *element_type,
                    count: u64::try_from(*count).map_err(|_| invalid)?,
                })
            }
            _ => Err(invalid),
        }
    }

    fn unsigned(&self, id: NodeId) -> Result<u64, TorchCheckpointError> {
        match self.nodes[id.0] {
            Node::Int(value) => u64::try_from(value).ok(),
            _ => None,
        }
        .ok_or(TorchCheckpointError::Invalid(
            "its pickle has a size that is not an unsigned integer",
        ))
    }

    fn dimensions(&self, id: NodeId) -> Result<Vec<u64>, TorchCheckpointError> {
        match &self.nodes[id.0] {
            Node::Sequence(items) if items.len() <= MAX_DIMENSIONS => {
                items.iter().map(|&item| self.unsigned(item)).collect()
            }
            _ => Err(TorchCheckpointError::Invalid(
                "its pickle has a shape that is not a tuple of at most 8 sizes",
            )),
        }
    }

    /// Creates a node and pushes it.
    fn push_node(&mut self, node: Node) -> Result<(), TorchCheckpointError> {
        let heap = match &node {
            Node::Text(text) => text.len(),
            Node::Sequence(items) => size_of_val(items.as_slice()),
            Node::Dict(entries) => size_of_val(entries.as_slice()),
            Node::Tensor(tensor) => {
                size_of_val(tensor.shape.as_slice()) + size_of_val(tensor.strides.as_slice())
            }
            // The key of a storage is shared with the text that it came from.
            Node::Ignored | Node::Bool(_) | Node::Int(_) | Node::Global(_) | Node::Storage(_) => 0,
        };
        self.charge(size_of::<Node>() + heap)?;
        let id = NodeId(self.nodes.len());
        self.nodes.push(node);
        self.push_id(id)
    }

    /// Pushes a node that exists.
    fn push_id(&mut self, id: NodeId) -> Result<(), TorchCheckpointError> {
        self.charge(size_of::<NodeId>())?;
        self.stack.push(id);
        Ok(())
    }

    /// Counts memory, which is never given back while the pickle is read.
    fn charge(&mut self, bytes: usize) -> Result<(), TorchCheckpointError> {
        self.memory_bytes += bytes;
        if self.memory_bytes > MAX_MEMORY_BYTES {
            return Err(TorchCheckpointError::Invalid(TOO_MUCH_MEMORY));
        }
        Ok(())
    }

    fn pop(&mut self) -> Result<NodeId, TorchCheckpointError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(TorchCheckpointError::Invalid(EMPTY_STACK));
        }
        self.stack
            .pop()
            .ok_or(TorchCheckpointError::Invalid(EMPTY_STACK))
    }

    fn top(&mut self) -> Result<&mut Node, TorchCheckpointError> {
        let id = *self
            .stack
            .last()
            .ok_or(TorchCheckpointError::Invalid(EMPTY_STACK))?;
        Ok(&mut self.nodes[id.0])
    }

    fn since_mark(&mut self) -> Result<Vec<NodeId>, TorchCheckpointError> {
        let mark = self
            .marks
            .pop()
            .ok_or(TorchCheckpointError::Invalid(EMPTY_STACK))?;
        // Not `split_off`, which may keep the capacity of the whole stack.
        Ok(self.stack.drain(mark..).collect())
    }

    fn byte(&mut self) -> Result<u8, TorchCheckpointError> {
        self.bytes::<1>().map(|[byte]| byte)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], TorchCheckpointError> {
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads a little-endian integer in two's complement, after its length.
    fn long(&mut self) -> Result<Node, TorchCheckpointError> {
        let length = usize::from(self.byte()?);
        let mut bytes = [0; 16];
        let Some(part) = bytes.get_mut(..length) else {
            return Err(TorchCheckpointError::Invalid(
                "its pickle has an integer of more than 128 bits",
            ));
        };
        self.reader.read_exact(part)?;
        let unused = 8 * (16 - length as u32);
        let value = i128::from_le_bytes(bytes);
        Ok(Node::Int(match unused {
            128 => 0,
            unused => (value << unused) >> unused,
        }))
    }

    /// Skips the bytes of a value.
    fn skip(&mut self, length: u32) -> Result<Node, TorchCheckpointError> {
        let mut bytes = (&mut self.reader).take(length.into());
        match std::io::copy(&mut bytes, &mut std::io::sink())? {
            read if read == u64::from(length) => Ok(Node::Ignored),
            _ => Err(TorchCheckpointError::Invalid("it ends within a value")),
        }
    }

    /// Reads a text. Allocates what the reader has, not what `length` claims.
    fn text(&mut self, length: u32) -> Result<Rc<str>, TorchCheckpointError> {
        let mut bytes = Vec::new();
        let read = (&mut self.reader)
            .take(length.into())
            .read_to_end(&mut bytes)?;
        if read != length as usize {
            return Err(TorchCheckpointError::Invalid("it ends within a text"));
        }
        let text = String::from_utf8(bytes).map_err(|_| {
            TorchCheckpointError::Invalid("its pickle has a text that is not UTF-8")
        })?;
        Ok(text.into())
    }

    /// Reads a name up to the end of its line.
    fn line(&mut self) -> Result<String, TorchCheckpointError> {
        let mut line = Vec::new();
        loop {
            match self.byte()? {
                b'\n' => return Ok(String::from_utf8_lossy(&line).into_owned()),
                byte if line.len() < MAX_NAME_BYTES => line.push(byte),
                _ => return Err(TorchCheckpointError::Invalid(LONG_NAME)),
            }
        }
    }
}

const EMPTY_STACK: &str = "its pickle takes more values from the stack than there are";
const LONG_NAME: &str = "its pickle has a name of more than 200 bytes";
pub(super) const TOO_MUCH_MEMORY: &str = "its pickle takes more than 32 MiB of memory";

/// Looks up a name that a `state_dict` needs, or that is often saved with one.
fn global(module: &str, name: &str) -> Result<Global, TorchCheckpointError> {
    Ok(match (module, name) {
        ("collections", "OrderedDict") => Global::OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
        ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
        ("torch", "DoubleStorage") => Global::Storage(ElementType::F64),
        ("torch", "FloatStorage") => Global::Storage(ElementType::F32),
        ("torch", "HalfStorage") => Global::Storage(ElementType::F16),
        ("torch", "BFloat16Storage") => Global::Storage(ElementType::Bf16),
        ("torch", "BoolStorage" | "ByteStorage" | "CharStorage") => {
            Global::Storage(ElementType::Other(1))
        }
        ("torch", "ShortStorage") => Global::Storage(ElementType::Other(2)),
        ("torch", "IntStorage") => Global::Storage(ElementType::Other(4)),
        ("torch", "LongStorage" | "ComplexFloatStorage") => Global::Storage(ElementType::Other(8)),
        ("torch", "ComplexDoubleStorage") => Global::Storage(ElementType::Other(16)),
        ("collections", "defaultdict" | "Counter")
        | ("builtins" | "__builtin__", "set" | "frozenset" | "complex" | "bytearray")
        | ("torch", "Size" | "device" | "float32" | "float64" | "float16" | "bfloat16" | "int64")
        | ("numpy", "dtype" | "ndarray")
        | ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar" | "_reconstruct")
        | ("_codecs", "encode")
        | ("argparse", "Namespace")
        | ("pathlib", "PosixPath" | "WindowsPath") => Global::Data,
        _ => {
            return Err(TorchCheckpointError::UnsupportedName(format!(
                "{module}.{name}"
            )));
        }
    })
}
