"""What versions of vLLM call their metrics."""

from __future__ import annotations

RUNNING = ("vllm:num_requests_running",)
WAITING = ("vllm:num_requests_waiting",)
SWAPPED = ("vllm:num_requests_swapped",)  # V0: preempted, its cache in host memory
KV_USED = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")  # renamed in 0.9
PROMPT = ("vllm:prompt_tokens_total", "vllm:prompt_tokens")
CACHED = ("vllm:prompt_tokens_cached_total",)
OUTPUT = ("vllm:generation_tokens_total", "vllm:generation_tokens")
PREEMPTIONS = ("vllm:num_preemptions_total", "vllm:num_preemptions")
ITERATIONS = ("vllm:iteration_tokens_total_count",)
SLEEP = ("vllm:engine_sleep_state",)
"""Names of each metric, the present one first; a page that has several has them all alike."""

ENDINGS = ("_total", "_sum", "_count", "_created")
"""Of counters and histograms."""

_KNOWN = """
num_requests_running num_requests_waiting num_requests_swapped num_requests_waiting_by_reason kv_cache_usage_perc
gpu_cache_usage_perc cpu_cache_usage_perc gpu_prefix_cache_hit_rate cpu_prefix_cache_hit_rate engine_sleep_state
cache_config_info lora_requests_info corrupted_requests prefix_cache_queries prefix_cache_hits
gpu_prefix_cache_queries gpu_prefix_cache_hits external_prefix_cache_queries external_prefix_cache_hits
mm_cache_queries mm_cache_hits num_preemptions prompt_tokens prompt_tokens_by_source prompt_tokens_cached
prompt_tokens_recomputed generation_tokens request_success request_prompt_tokens request_generation_tokens
iteration_tokens request_max_num_generation_tokens request_params_n request_params_max_tokens
request_params_best_of request_prefill_kv_computed_tokens time_to_first_token_seconds time_per_output_token_seconds
inter_token_latency_seconds request_time_per_output_token_seconds time_per_prefill_token_request_seconds
e2e_request_latency_seconds request_queue_time_seconds request_inference_time_seconds request_prefill_time_seconds
request_decode_time_seconds model_forward_time_milliseconds model_execute_time_milliseconds time_in_queue_requests
avg_prompt_throughput_toks_per_s avg_generation_throughput_toks_per_s kv_block_lifetime_seconds
kv_block_idle_before_evict_seconds kv_block_reuse_gap_seconds spec_decode_num_drafts spec_decode_num_draft_tokens
spec_decode_num_accepted_tokens spec_decode_num_accepted_tokens_per_pos
"""
KNOWN = frozenset("vllm:" + name for name in _KNOWN.split())
"""Metrics of the V0 and V1 engines without these endings; one that is not among them may be an old one renamed."""


def bare(name: str) -> str:
    """The name without such an ending."""
    return next((name.removesuffix(ending) for ending in ENDINGS if name.endswith(ending)), name)
