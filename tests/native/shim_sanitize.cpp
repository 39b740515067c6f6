// Kernel bodies in a program of their own, for the sanitizers (they do not mix with a Python that
// was built without them): -fsanitize=thread, or -fsanitize=address,undefined.
//
//   shim_sanitize        lists the cases, each with a tab and a part of the report that it must
//                        give; nothing after the tab: the case must be clean
//   shim_sanitize CASE   runs one; an exception is printed and ends it with 1
//
// To add a kernel: a function that launches it and throws when an answer is wrong, and a line in
// cases().
#include <cstdio>
#include <functional>

#include "shim_bad.h"
#ifndef MVNROB_SHIM_UCONTEXT  // the other switch of stacks is tested by the shim's own bodies
#include "shim_jac_cov_cases.h"
#include "shim_mendell_elston_cases.h"
#include "shim_mvn_cdf_cases.h"
#include "shim_nearest_ends_cases.h"
#include "shim_pivoted_cholesky_cases.h"
#endif

using namespace shim_tests;

namespace {

struct Case {
  std::string name;
  std::function<void()> run;
  std::string report;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const Good& good : kGood) {
    all.push_back({good.name,
                   [&good] {
                     for (const unsigned threads : kSizes) good.check(threads, 3);
                   },
                   ""});
  }
#ifndef MVNROB_SHIM_UCONTEXT
  for (const MvnCdfCase& one : kMvnCdfCases) all.push_back({one.name, one.run, ""});
  for (const MendellElstonCase& one : kMendellElstonCases) all.push_back({one.name, one.run, ""});
  for (const PivotedCholeskyCase& one : kPivotedCholeskyCases)
    all.push_back({one.name, one.run, ""});
  for (const JacCovCase& one : kJacCovCases) all.push_back({one.name, one.run, ""});
  all.push_back({"nearest_ends", check_nearest_ends, ""});
#endif
  for (const Bad& bad : kBad) {
#ifdef __SANITIZE_THREAD__
    all.push_back({bad.name, bad.run, bad.thread});
#else
    all.push_back({bad.name, bad.run, bad.address});
#endif
  }
  return all;
}

}  // namespace

int main(int argc, char** argv) {
  for (const Case& one : cases()) {
    if (argc < 2) {
      std::printf("%s\t%s\n", one.name.c_str(), one.report.c_str());
    } else if (one.name == argv[1]) {
      try {
        one.run();
      } catch (const std::exception& error) {
        std::fprintf(stderr, "%s: %s\n", argv[1], error.what());
        return 1;
      }
      return 0;
    }
  }
  if (argc < 2) return 0;
  std::fprintf(stderr, "shim_sanitize: CASE must be one of those listed without it, got %s\n",
               argv[1]);
  return 2;
}
