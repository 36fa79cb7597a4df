#include "registry/internal/requester.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status.h"
#include "registry/internal/headers.h"
#include "registry/internal/refusal.h"
#include "registry/internal/wait.h"

namespace lazyblob::registry::internal {
namespace {

constexpr int kMaxHops = 5;
constexpr size_t kMaxTargets = 4096;
constexpr size_t kMaxCodesShown = 6;

bool IsRedirect(int status) {
  return status == 301 || status == 302 || status == 303 || status == 307 || status == 308;
}

// Whether the request can go out once more, elsewhere or with another token.
bool MaySendAgain(const ApiRequest& request) { return request.upload == nullptr || request.upload->Rewind(); }

// Passes 2xx on to the caller's handler and keeps a bounded piece of every other body.
class Filter final : public ResponseHandler {
 public:
  Filter(ResponseHandler* handler, const CallContext& context) : handler_(handler), context_(context) {}

  absl::StatusOr<BodyAction> OnResponse(const HttpResponse& response) override {
    response_ = response;
    if (!success()) return BodyAction::kContinue;
    return Pass(handler_->OnResponse(response));
  }

  absl::StatusOr<BodyAction> OnBody(absl::Span<const uint8_t> data) override {
    if (success()) {
      if (context_.bytes_received != nullptr)
        context_.bytes_received->fetch_add(data.size(), std::memory_order_relaxed);
      return Pass(handler_->OnBody(data));
    }
    // Short error bodies are read to their end so that the connection can be used again.
    error_body_.append(reinterpret_cast<const char*>(data.data()), data.size());
    return error_body_.size() > kMaxErrorBody ? BodyAction::kStop : BodyAction::kContinue;
  }

  // Ready for the next request of the same exchange.
  void Reset() {
    response_ = HttpResponse();
    error_body_.clear();
  }

  bool success() const { return response_.status >= 200 && response_.status < 300; }
  // The caller's handler ended it with an error: not the network's fault.
  bool refused() const { return refused_; }
  const HttpResponse& response() const { return response_; }
  const std::string& error_body() const { return error_body_; }

 private:
  absl::StatusOr<BodyAction> Pass(absl::StatusOr<BodyAction> action) {
    refused_ = refused_ || !action.ok();
    return action;
  }

  ResponseHandler* const handler_;
  const CallContext& context_;
  HttpResponse response_;
  std::string error_body_;
  bool refused_ = false;
};

// The headers configured for a host, where the request has none of that name.
void AddConfigured(const Headers& configured, bool authorized, Headers* headers) {
  Headers own = *headers;
  for (const auto& [name, value] : configured) {
    bool taken = authorized && absl::EqualsIgnoreCase(name, "authorization");
    for (const auto& entry : own) taken = taken || absl::EqualsIgnoreCase(entry.first, name);
    if (!taken) headers->emplace_back(name, value);
  }
}

}  // namespace

std::optional<Url> TargetCache::Find(const std::string& key) {
  absl::MutexLock lock(&mutex_);
  auto found = entries_.find(key);
  if (found == entries_.end()) return std::nullopt;
  order_.splice(order_.begin(), order_, found->second.position);
  return found->second.target;
}

void TargetCache::Set(const std::string& key, const Url& target) {
  absl::MutexLock lock(&mutex_);
  if (auto found = entries_.find(key); found != entries_.end()) {
    found->second.target = target;
    order_.splice(order_.begin(), order_, found->second.position);
    return;
  }
  order_.push_front(key);
  entries_[key] = Entry{target, order_.begin()};
  if (entries_.size() <= kMaxTargets) return;
  entries_.erase(order_.back());
  order_.pop_back();
}

void TargetCache::Forget(const std::string& key) {
  absl::MutexLock lock(&mutex_);
  auto found = entries_.find(key);
  if (found == entries_.end()) return;
  order_.erase(found->second.position);
  entries_.erase(found);
}

struct Requester::Exchange {
  const ApiRequest& request;
  const CallContext& context;
  Filter filter;
  Url api;
  Url url;
  std::string scope;
  std::string key;            // of the target cache; empty: not cached
  std::string authorization;  // that the last request carried
  bool from_cache = false;    // url came from the target cache
  bool reauthenticated = false;
  bool re_resolved = false;
  int hops = 0;

  bool at_api() const { return url == api; }
  bool own_origin() const { return url.Origin() == api.Origin(); }
};

std::optional<Attempt> Requester::Redirected(Exchange* exchange) {
  const HttpResponse& response = exchange->filter.response();
  auto refuse = [&](absl::Status status) { return Attempt{std::move(status), response.status, false}; };
  const ApiRequest& request = exchange->request;
  bool keeps_method = response.status == 307 || response.status == 308;
  if (!keeps_method && request.method != "GET" && request.method != "HEAD") return Refused(*exchange);
  if (!MaySendAgain(request)) {
    return refuse(absl::UnavailableError(
        absl::StrCat(exchange->url.HostForMessages(), " redirected after part of the body was sent")));
  }
  if (++exchange->hops > kMaxHops) return refuse(absl::DataLossError("redirected more than 5 times"));
  absl::StatusOr<Url> next = exchange->url.Resolve(response.Get("location"));
  if (!next.ok()) return refuse(absl::DataLossError(absl::StrCat("redirect: ", next.status().message())));
  if (exchange->url.scheme == "https" && next->scheme != "https") {
    return refuse(absl::PermissionDeniedError("redirected from https to http; refused"));
  }
  absl::Status allowed = CheckTarget(exchange->api, *next, options_.allow_private_redirects);
  if (!allowed.ok()) return refuse(base::Annotate(allowed, "redirect"));
  exchange->url = *std::move(next);
  exchange->from_cache = false;
  return std::nullopt;
}

Attempt Requester::Refused(const Exchange& exchange) {
  const HttpResponse& response = exchange.filter.response();
  int status = response.status;
  ErrorBody body = ParseErrorBody(exchange.filter.error_body());
  std::string codes = absl::StrJoin(absl::MakeConstSpan(body.codes).subspan(0, kMaxCodesShown), ", ");
  std::string text = absl::StrCat("HTTP ", status, codes.empty() ? "" : " ", codes, " from ",
                                  exchange.url.HostForMessages());
  auto refused = [&](absl::Status error, bool retry = false) {
    return Attempt{WithRefusal(std::move(error), status, body), status, retry};
  };
  if (status == 429 || status == 503) {
    std::optional<absl::Duration> pause = ParseRetryAfter(response.Get("retry-after"), clock_.WallTime());
    if (pause) hosts_.Pause(exchange.url.Origin(), *pause);
  }
  if (status == 408 || status == 429 || status >= 500) return refused(absl::UnavailableError(text), true);
  if (status == 401) {
    const char* advice = exchange.request.plain_url       ? " (URLs are asked without credentials)"
                         : exchange.authorization.empty() ? " (no credentials are known for it)"
                                                          : " to the credentials given";
    return refused(absl::UnauthenticatedError(absl::StrCat(text, advice)));
  }
  if (status == 403) return refused(absl::PermissionDeniedError(text));
  if (status == 404 || status == 410) return refused(absl::NotFoundError(text));
  if (status == 416) return refused(absl::OutOfRangeError(text));
  if (status < 400) return refused(absl::DataLossError(text));
  return refused(absl::InvalidArgumentError(text));
}

std::optional<Attempt> Requester::Judge(Exchange* exchange) {
  const HttpResponse& response = exchange->filter.response();
  int status = response.status;
  if (exchange->filter.success()) {
    if (!exchange->key.empty() && exchange->hops > 0) targets_.Set(exchange->key, exchange->url);
    return Attempt{absl::OkStatus(), status, false};
  }
  if (IsRedirect(status) && !response.Get("location").empty()) return Redirected(exchange);
  const bool may_authenticate = exchange->own_origin() && !exchange->request.plain_url;
  if (status == 401 && may_authenticate && !exchange->reauthenticated) {
    exchange->reauthenticated = true;
    absl::Status learnt = authenticator_.Learn(exchange->request.endpoint, exchange->scope, response,
                                               exchange->authorization, exchange->context);
    if (!learnt.ok()) return Attempt{WithRefusal(learnt, status, {}), status, false};
    // What was learnt serves the caller's next request then.
    if (!MaySendAgain(exchange->request)) return Refused(*exchange);
    return std::nullopt;
  }
  // A signed target that has run out answers one of these: ask the registry for a new one, once.
  bool stale = (status == 400 || status == 401 || status == 403) && !exchange->at_api();
  if (exchange->from_cache) stale = stale || status == 404 || status == 410;
  if (stale && !exchange->re_resolved && !exchange->request.session && MaySendAgain(exchange->request)) {
    exchange->re_resolved = true;
    exchange->from_cache = false;
    exchange->hops = 0;
    exchange->url = exchange->api;
    if (!exchange->key.empty()) targets_.Forget(exchange->key);
    return std::nullopt;
  }
  if (!exchange->key.empty() && !exchange->at_api()) targets_.Forget(exchange->key);
  return Refused(*exchange);
}

Attempt Requester::Follow(Exchange* exchange) {
  while (true) {
    HttpRequest http;
    http.method = exchange->request.method;
    http.url = exchange->url;
    http.headers = exchange->request.headers;
    http.upload = exchange->request.upload;
    http.expect_continue = exchange->request.expect_continue;
    http.answer_patience = exchange->request.answer_patience;
    http.cancel_patience = exchange->request.cancel_patience;
    http.tls = TlsAt(exchange->request.endpoint.tls, exchange->api, exchange->url);
    http.deadline = exchange->context.deadline;
    http.cancel = exchange->context.cancel;
    http.allow_local_address =
        MayConnectLocally(exchange->api, exchange->url, options_.allow_private_redirects) ||
        exchange->at_api();
    absl::Status waited = hosts_.AwaitTurn(exchange->url, exchange->context, sleep_);
    if (!waited.ok()) return {waited, 0, false};
    exchange->authorization.clear();
    if (exchange->own_origin() && !exchange->request.plain_url) {
      absl::StatusOr<std::string> header =
          authenticator_.Authorize(exchange->request.endpoint, exchange->scope, exchange->context);
      // What an earlier answer asked for cannot be met: the registry may want something else by now.
      if (!header.ok() && !exchange->reauthenticated && !absl::IsCancelled(header.status()) &&
          !absl::IsDeadlineExceeded(header.status())) {
        header = std::string();
      }
      if (!header.ok()) return {header.status(), 0, absl::IsUnavailable(header.status())};
      exchange->authorization = *std::move(header);
      AddConfigured(exchange->request.endpoint.headers, !exchange->authorization.empty(), &http.headers);
      if (!exchange->authorization.empty())
        http.headers.emplace_back("Authorization", exchange->authorization);
    }
    TransferTiming timing;
    absl::Status status = transport_.Perform(http, &exchange->filter, &timing);
    // The time to the first byte of an answer to an upload is mostly that of sending.
    if (exchange->filter.success() && http.upload == nullptr)
      hosts_.Observe(exchange->request.endpoint.host, timing);
    // An error's body may break off (docker-registry announces the blob's length with its 416): its status
    // stands. So does the whole head of an answer whose body nobody wants.
    int decisive = exchange->request.method == "GET" ? 300 : 200;
    if (absl::IsUnavailable(status) && exchange->filter.response().status >= decisive) {
      status = absl::OkStatus();
    }
    if (!status.ok()) {
      if (exchange->from_cache) targets_.Forget(exchange->key);
      if (exchange->filter.refused()) return {status, exchange->filter.response().status, false};
      bool retry = absl::IsUnavailable(status) || absl::IsDataLoss(status);
      return {base::Annotate(status, exchange->url.HostForMessages()), 0, retry};
    }
    if (std::optional<Attempt> end = Judge(exchange)) return *std::move(end);
    exchange->filter.Reset();
  }
}

Attempt Requester::Send(const ApiRequest& request, ResponseHandler* handler, const CallContext& context) {
  absl::StatusOr<Url> api =
      request.plain_url ? *request.plain_url : request.endpoint.ApiUrl(request.repository, request.rest);
  if (!api.ok()) return {api.status(), 0, false};
  if (request.session) {
    absl::Status allowed = CheckTarget(*api, *request.session, options_.allow_private_redirects);
    if (!allowed.ok()) return {base::Annotate(allowed, "upload session"), 0, false};
  }
  Exchange exchange{request, context, Filter(handler, context), *api, *api, "", "", ""};
  absl::string_view actions = context.access == Access::kPull ? "pull"
                              : request.may_delete            ? "pull,push,delete"
                                                              : "pull,push";
  // What is pushed to comes first: some token servers look no further.
  exchange.scope = absl::StrCat("repository:", request.repository, ":", actions);
  if (!request.also_pull.empty()) {
    absl::StrAppend(&exchange.scope, " repository:", request.also_pull, ":pull");
  }
  if (request.session) exchange.url = *request.session;
  if (request.cache_target) {
    exchange.key = api->ToString();
    if (std::optional<Url> target = targets_.Find(exchange.key)) {
      exchange.url = *std::move(target);
      exchange.from_cache = true;
    }
  }
  return Follow(&exchange);
}

}  // namespace lazyblob::registry::internal
