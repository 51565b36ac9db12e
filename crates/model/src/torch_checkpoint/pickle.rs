//! Reads the pickle of a `torch.save` without running any of it: only the
//! instructions and the names that a `state_dict` needs are known, and a name
//! stands for a shape of data, never for code. What the data mean is decided
//! in the parent module.

use std::collections::HashMap;
use std::io::Read;

use super::TorchCheckpointError;

/// Most nodes of a pickle: a vocabulary of 65,536 characters is one each, and
/// all else in it is some hundred.
const MAX_NODES: usize = 200_000;

/// A node within its pickle. Nodes name each other by number, so that neither
/// a cycle nor a deep nest does harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Id(usize);

/// A value of the pickle.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    /// `None`, or a number that is not whole: nothing here reads it.
    Nothing,
    Bool(bool),
    /// Wide enough for the magic number of the older format.
    Int(i128),
    Text(String),
    /// A tuple or a list.
    Sequence(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage(Storage),
    Tensor(Tensor),
}

/// The names that may stand in a pickle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Kind),
}

/// Type of the numbers of a storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    F64,
    F32,
    F16,
    Bf16,
}

impl Kind {
    /// Bytes of a number.
    pub(super) fn bytes(self) -> u64 {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// A row of numbers that lies elsewhere in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Storage {
    pub(super) key: String,
    pub(super) kind: Kind,
    /// Numbers in it.
    pub(super) count: u64,
}

/// A view of a storage. Offset and strides count numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tensor {
    pub(super) storage: Storage,
    pub(super) offset: u64,
    pub(super) shape: Vec<u64>,
    pub(super) strides: Vec<u64>,
}

/// What a pickle holds.
#[derive(Debug)]
pub(super) struct Pickle {
    nodes: Vec<Node>,
    root: Id,
}

impl Pickle {
    /// Reads to the end of one pickle and no byte further. The caller bounds
    /// the reader, and with it the memory.
    pub(super) fn read(reader: impl Read) -> Result<Self, TorchCheckpointError> {
        let mut machine = Machine {
            reader,
            nodes: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
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

    pub(super) fn root(&self) -> &Node {
        self.node(self.root)
    }

    pub(super) fn node(&self, id: Id) -> &Node {
        &self.nodes[id.0]
    }

    /// The value of a key, where `node` is a dict that has it.
    pub(super) fn entry(&self, node: &Node, key: &str) -> Option<&Node> {
        let Node::Dict(entries) = node else {
            return None;
        };
        // As in Python, the last of several counts.
        entries
            .iter()
            .rev()
            .find(|(name, _)| matches!(self.node(*name), Node::Text(text) if text == key))
            .map(|&(_, value)| self.node(value))
    }

    /// All storages that are named, some of them several times.
    pub(super) fn storages(&self) -> impl Iterator<Item = &Storage> {
        self.nodes.iter().filter_map(|node| match node {
            Node::Storage(storage) => Some(storage),
            _ => None,
        })
    }
}

struct Machine<R> {
    reader: R,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<R: Read> Machine<R> {
    fn execute(&mut self, opcode: u8) -> Result<(), TorchCheckpointError> {
        match opcode {
            // PROTO and FRAME say nothing that is needed.
            0x80 => self.bytes::<1>().map(|_| ()),
            0x95 => self.bytes::<8>().map(|_| ()),
            b'N' | 0x88 | 0x89 | b'K' | b'M' | b'J' | 0x8a | b'G' | b'X' | 0x8c => {
                let node = self.literal(opcode)?;
                self.push(node)
            }
            b'}' | b']' | b')' | b'(' | b't' | b'l' | 0x85..=0x87 | b'a' | b'e' | b's' | b'u' => {
                self.container(opcode)
            }
            b'c' | 0x93 | b'R' | b'b' | b'Q' => self.object(opcode),
            b'q' | b'r' | 0x94 | b'h' | b'j' => self.memory(opcode),
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
                Node::Nothing
            }
            b'X' => {
                let length = u32::from_le_bytes(self.bytes()?);
                Node::Text(self.text(length)?)
            }
            0x8c => {
                let length = self.byte()?;
                Node::Text(self.text(length.into())?)
            }
            _ => Node::Nothing,
        })
    }

    fn container(&mut self, opcode: u8) -> Result<(), TorchCheckpointError> {
        match opcode {
            b'}' => self.push(Node::Dict(Vec::new())),
            b']' | b')' => self.push(Node::Sequence(Vec::new())),
            b'(' => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            b't' | b'l' => {
                let items = self.since_mark()?;
                self.push(Node::Sequence(items))
            }
            0x85..=0x87 => {
                let mut items = vec![Id(0); usize::from(opcode - 0x84)];
                for item in items.iter_mut().rev() {
                    *item = self.pop()?;
                }
                self.push(Node::Sequence(items))
            }
            b'a' => {
                let item = self.pop()?;
                self.append(&[item])
            }
            b'e' => {
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

    fn append(&mut self, items: &[Id]) -> Result<(), TorchCheckpointError> {
        match self.top()? {
            Node::Sequence(sequence) => sequence.extend_from_slice(items),
            _ => {
                return Err(TorchCheckpointError::Broken(
                    "it appends to what is no list",
                ));
            }
        }
        Ok(())
    }

    fn insert(&mut self, items: &[Id]) -> Result<(), TorchCheckpointError> {
        match self.top()? {
            Node::Dict(entries) if items.len().is_multiple_of(2) => {
                entries.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
            }
            _ => {
                return Err(TorchCheckpointError::Broken(
                    "it inserts into what is no dict",
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
                self.push(Node::Global(global))
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Node::Text(module), Node::Text(name)) =
                    (&self.nodes[module.0], &self.nodes[name.0])
                else {
                    return Err(TorchCheckpointError::Broken("a name in it is no text"));
                };
                let global = global(module, name)?;
                self.push(Node::Global(global))
            }
            b'R' => {
                let (arguments, callable) = (self.pop()?, self.pop()?);
                let node = self.call(callable, arguments)?;
                self.push(node)
            }
            // A dict's attributes; PyTorch keeps versions of modules there.
            b'b' => {
                self.pop()?;
                match self.top()? {
                    Node::Dict(_) => Ok(()),
                    _ => Err(TorchCheckpointError::Broken(
                        "it sets attributes of no dict",
                    )),
                }
            }
            _ => {
                let id = self.pop()?;
                let storage = self.storage(id)?;
                self.push(Node::Storage(storage))
            }
        }
    }

    fn memory(&mut self, opcode: u8) -> Result<(), TorchCheckpointError> {
        let key = match opcode {
            b'q' | b'h' => self.byte()?.into(),
            b'r' | b'j' => u32::from_le_bytes(self.bytes()?),
            _ => u32::try_from(self.memo.len()).unwrap_or(u32::MAX),
        };
        if matches!(opcode, b'h' | b'j') {
            let known = self.memo.get(&key).copied();
            self.stack.push(known.ok_or(TorchCheckpointError::Broken(
                "it recalls what it never kept",
            ))?);
            return self.check_size();
        }
        let top = *self
            .stack
            .last()
            .ok_or(TorchCheckpointError::Broken(EMPTY))?;
        self.memo.insert(key, top);
        self.check_size()
    }

    /// What a call of a known name makes; nothing is called.
    fn call(&self, callable: Id, arguments: Id) -> Result<Node, TorchCheckpointError> {
        let (Node::Global(global), Node::Sequence(arguments)) =
            (&self.nodes[callable.0], &self.nodes[arguments.0])
        else {
            return Err(TorchCheckpointError::Broken("it calls what is no name"));
        };
        match (global, arguments.as_slice()) {
            (Global::OrderedDict, []) => Ok(Node::Dict(Vec::new())),
            (Global::RebuildParameter, [tensor, ..]) => Ok(self.nodes[tensor.0].clone()),
            (Global::RebuildTensor, &[storage, offset, shape, strides, ..]) => {
                let Node::Storage(storage) = &self.nodes[storage.0] else {
                    return Err(TorchCheckpointError::Broken(
                        "a tensor in it has no storage",
                    ));
                };
                Ok(Node::Tensor(Tensor {
                    storage: storage.clone(),
                    offset: self.number(offset)?,
                    shape: self.numbers(shape)?,
                    strides: self.numbers(strides)?,
                }))
            }
            _ => Err(TorchCheckpointError::Broken(
                "it calls a name in an unknown way",
            )),
        }
    }

    /// `('storage', TYPE, KEY, DEVICE, COUNT)`, and `None` after it in the
    /// older format.
    fn storage(&self, id: Id) -> Result<Storage, TorchCheckpointError> {
        let broken = TorchCheckpointError::Broken("it refers to what is no storage");
        let Node::Sequence(parts) = &self.nodes[id.0] else {
            return Err(broken);
        };
        let parts: Vec<&Node> = parts
            .iter()
            .take(6)
            .map(|part| &self.nodes[part.0])
            .collect();
        match parts.as_slice() {
            [
                Node::Text(tag),
                Node::Global(Global::Storage(kind)),
                Node::Text(key),
                Node::Text(_),
                Node::Int(count),
                view @ ..,
            ] if tag == "storage" && matches!(view, [] | [Node::Nothing]) => Ok(Storage {
                key: key.clone(),
                kind: *kind,
                count: u64::try_from(*count).map_err(|_| broken)?,
            }),
            _ => Err(broken),
        }
    }

    fn number(&self, id: Id) -> Result<u64, TorchCheckpointError> {
        match self.nodes[id.0] {
            Node::Int(number) => u64::try_from(number).ok(),
            _ => None,
        }
        .ok_or(TorchCheckpointError::Broken(
            "a size in it is no whole number",
        ))
    }

    fn numbers(&self, id: Id) -> Result<Vec<u64>, TorchCheckpointError> {
        match &self.nodes[id.0] {
            Node::Sequence(items) if items.len() <= 8 => {
                items.iter().map(|&item| self.number(item)).collect()
            }
            _ => Err(TorchCheckpointError::Broken(
                "a shape in it is no short tuple",
            )),
        }
    }

    fn push(&mut self, node: Node) -> Result<(), TorchCheckpointError> {
        self.stack.push(Id(self.nodes.len()));
        self.nodes.push(node);
        self.check_size()
    }

    fn check_size(&self) -> Result<(), TorchCheckpointError> {
        let most = self.nodes.len().max(self.stack.len()).max(self.memo.len());
        if most > MAX_NODES {
            return Err(TorchCheckpointError::Broken(
                "its pickle holds too many values",
            ));
        }
        Ok(())
    }

    fn pop(&mut self) -> Result<Id, TorchCheckpointError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(TorchCheckpointError::Broken(EMPTY));
        }
        self.stack.pop().ok_or(TorchCheckpointError::Broken(EMPTY))
    }

    fn top(&mut self) -> Result<&mut Node, TorchCheckpointError> {
        let id = *self
            .stack
            .last()
            .ok_or(TorchCheckpointError::Broken(EMPTY))?;
        Ok(&mut self.nodes[id.0])
    }

    fn since_mark(&mut self) -> Result<Vec<Id>, TorchCheckpointError> {
        let mark = self
            .marks
            .pop()
            .ok_or(TorchCheckpointError::Broken(EMPTY))?;
        Ok(self.stack.split_off(mark))
    }

    fn byte(&mut self) -> Result<u8, TorchCheckpointError> {
        self.bytes::<1>().map(|[byte]| byte)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], TorchCheckpointError> {
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// A little-endian number in two's complement.
    fn long(&mut self) -> Result<Node, TorchCheckpointError> {
        let length = usize::from(self.byte()?);
        let mut bytes = [0; 16];
        let Some(part) = bytes.get_mut(..length) else {
            return Err(TorchCheckpointError::Broken("a number in it is too large"));
        };
        self.reader.read_exact(part)?;
        let unused = 8 * (16 - length as u32);
        let number = i128::from_le_bytes(bytes);
        Ok(Node::Int(match unused {
            128 => 0,
            unused => (number << unused) >> unused,
        }))
    }

    /// Grows with what is there, not with what is said to be.
    fn text(&mut self, length: u32) -> Result<String, TorchCheckpointError> {
        let mut bytes = Vec::new();
        let read = (&mut self.reader)
            .take(length.into())
            .read_to_end(&mut bytes)?;
        if read != length as usize {
            return Err(TorchCheckpointError::Broken("it ends within a text"));
        }
        String::from_utf8(bytes)
            .map_err(|_| TorchCheckpointError::Broken("a text in it is not UTF-8"))
    }

    fn line(&mut self) -> Result<String, TorchCheckpointError> {
        let mut line = Vec::new();
        loop {
            match self.byte()? {
                b'\n' => return Ok(String::from_utf8_lossy(&line).into_owned()),
                byte if line.len() < 200 => line.push(byte),
                _ => return Err(TorchCheckpointError::Broken("a name in it is too long")),
            }
        }
    }
}

const EMPTY: &str = "its pickle takes more from its stack than there is";

fn global(module: &str, name: &str) -> Result<Global, TorchCheckpointError> {
    Ok(match (module, name) {
        ("collections", "OrderedDict") => Global::OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
        ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
        ("torch", "DoubleStorage") => Global::Storage(Kind::F64),
        ("torch", "FloatStorage") => Global::Storage(Kind::F32),
        ("torch", "HalfStorage") => Global::Storage(Kind::F16),
        ("torch", "BFloat16Storage") => Global::Storage(Kind::Bf16),
        _ => return Err(TorchCheckpointError::Name(format!("{module}.{name}"))),
    })
}
