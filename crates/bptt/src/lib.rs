//! Training of the charlstm network on the CPU: loss and gradient by
//! backpropagation through time, and the optimizer. Batches, schedules and
//! checkpoints belong to the callers.

mod cells;
pub mod dropout;
pub mod instructions;
pub mod learner;
mod named_ranges;
mod network;
pub mod optimizer;
mod panels;
mod product;
mod shared_buffer;
mod team;
mod team_size;
pub mod trainer;
