// A pass ends soon after its caller has asked for that, wherever it is then, with all threads and
// all memory; the next one is none the worse for it.
#include <cstring>

#include "tests/support/check.h"
#include "tests/support/runs.h"

namespace circle_kernels {
namespace {

// Problem::interrupted is a plain function.
int64_t questions = 0, last_question = 0;

bool is_last() { return ++questions > last_question; }

// The number of questions that a pass asks if the answer is never yes.
template <class Pass>
int64_t count_questions(Pass pass) {
  questions = 0;
  last_question = INT64_MAX;
  pass();
  return questions;
}

// Whether a pass ends at once where the answer is yes after so many questions.
template <class Pass>
bool ends_at(int64_t question, Pass pass) {
  questions = 0;
  last_question = question;
  try {
    pass();
  } catch (const Interrupted&) {
    return questions == question + 1;
  }
  return false;
}

void check_interrupted(const Level& level, const Case& asked, int64_t kept, int threads) {
  const Inputs inputs = make_inputs(asked);
  const RunOptions options{kept, threads};
  const Results expected = run_both(level, inputs, options);
  Results results = run_both(level, inputs, options);
  Problem problem = inputs.problem(kept, threads);
  problem.interrupted = is_last;
  const auto forward = [&] {
    run_forward(level, problem,
                {results.lse_pos.data(), results.lse_neg.data(), results.saved.data(),
                 results.saved.bytes()});
  };
  const auto backward = [&] { run_backward_of(problem, inputs, options, results); };

  const auto check_pass = [&](const char* name, auto pass) {
    const int64_t all = count_questions(pass);
    // One thread is asked for every tile. Of several, the first one is for those that it takes,
    // which may be none.
    CHECK_WITH(threads > 1 || all >= inputs.tiles(), "%s asks %lld times; %s", name,
               static_cast<long long>(all), describe(asked).c_str());
    for (int64_t question = 0; question < all; question += question + 1) {
      if (ends_at(question, pass) || (threads > 1 && questions <= question)) continue;
      CHECK_WITH(false, "%s goes on after question %lld of %lld, %lld asked; %s", name,
                 static_cast<long long>(question), static_cast<long long>(all),
                 static_cast<long long>(questions), describe(asked).c_str());
    }
    count_questions(pass);  // to its end
  };
  check_pass("the forward pass", forward);
  check_pass("the backward pass", backward);
  CHECK(results.lse_pos.same_bytes(expected.lse_pos));
  CHECK(results.lse_neg.same_bytes(expected.lse_neg));
  CHECK(results.grad_rows.same_bytes(expected.grad_rows));
  CHECK(results.grad_columns.same_bytes(expected.grad_columns));
}

void test_interrupted(const Level& level) {
  for (const int threads : {1, 3}) {
    for (const Scalar scalar : {Scalar::float32, Scalar::bfloat16}) {
      Case asked;
      asked.scalar = scalar;
      asked.formula = circle_formula(20, true);
      asked.dim = 30;               // enough for several threads
      asked.rows = 17 * PANEL + 5;  // several chunks of the backward pass
      check_interrupted(level, asked, 20, threads);
      asked.rows = 200;
      asked.columns = 20 * PANEL;
      check_interrupted(level, asked, 0, threads);
      asked.rows = 3;
      asked.columns = 2;
      asked.dim = 60000;  // deep
      check_interrupted(level, asked, 0, threads);
    }
  }
}

}  // namespace
}  // namespace circle_kernels

int main(int count, char** arguments) {
  using namespace circle_kernels;
  const Level* level = level_from_arguments(count, arguments);
  if (level == nullptr) return 77;
  test_interrupted(*level);
  return summary();
}
