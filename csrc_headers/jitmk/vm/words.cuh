// Words: how SMs hand values to each other.
//
// A word is 8 bytes in global memory: a payload of 32 bits (low half) and the epoch that wrote it (high half).
// The rules that keep them correct:
//  1. A word is written once an epoch with one 8-byte relaxed store at gpu scope and read with 8-byte relaxed loads.
//     It vouches for its own 8 bytes and for nothing else.
//  2. Anything else that crosses SMs inside a launch (the KV cache between two steps) is released by the writer and
//     acquired by the reader, with a proxy fence before a bulk copy reads what ordinary stores wrote.
//  3. A word is not rewritten before every reader of the old epoch is past it. Every instruction of a step feeds the
//     step's token and every step waits for the token before, so a step's words are rewritten only after all of
//     their readers have finished.
//  4. A sum over SMs carries, in its high bits, the number of those that have added to it (sample_filter.cuh).
#pragma once
#include "jitmk/ptx/memory.cuh"

namespace jitmk::vm {

__device__ __forceinline__ u64 make_word(u32 payload, u32 epoch) { return static_cast<u64>(epoch) << 32 | payload; }
__device__ __forceinline__ u32 word_payload(u64 word) { return static_cast<u32>(word); }
__device__ __forceinline__ u32 word_epoch(u64 word) { return static_cast<u32>(word >> 32); }

}  // namespace jitmk::vm
