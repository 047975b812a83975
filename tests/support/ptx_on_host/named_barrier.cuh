// What stands for ptx/named_barrier.cuh on the host, where a CTA has one.
#pragma once
#include "jitmk/ptx/types.cuh"

namespace jitmk::ptx {

template <int, int THREADS>
void barrier_sync() {
  machine::meet_in_cta(THREADS, true);
}
template <int, int THREADS>
void barrier_arrive() {
  machine::meet_in_cta(THREADS, false);
}

}  // namespace jitmk::ptx
