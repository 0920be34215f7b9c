"""The application: routes behind the guard."""

import contextlib
from collections.abc import AsyncIterator, Sequence

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from llm_jax.serve import guards, openai, playground, requests
from llm_jax.serve.models import Models


def create(
  models: Models,
  *,
  hosts: Sequence[str] = guards.HOSTS,
  token: str = "",
  play: playground.Playground | None = None,
) -> guards.App:
  """Returns the ASGI application of these models.

  Args:
    models: what is served.
    hosts: names under which it may be asked.
    token: what clients must send; "": none.
    play: what the page shows; None: there is no page.
  """

  @contextlib.asynccontextmanager
  async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    yield
    models.close()

  # No pages of documentation: they load scripts of others.
  app = FastAPI(title="llm_jax", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
  app.include_router(openai.router(models))
  if play:
    app.include_router(playground.router(play))

  @app.exception_handler(RequestValidationError)
  async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
      return JSONResponse(guards.error("the body is no JSON", 400), 400)
    # Beside fields and numbers it names the types that were tried.
    field, *inside = first["loc"][1:] or ("body",)
    inside = [part for part in inside if isinstance(part, int) or part in requests.FIELDS]
    place = ".".join(map(str, (field, *inside)))
    return JSONResponse(guards.error(f"{place}: {first['msg']}", 400, place), 400)

  @app.exception_handler(HTTPException)
  async def other(_: Request, error: HTTPException) -> JSONResponse:
    return JSONResponse(guards.error(str(error.detail), error.status_code), error.status_code)

  return guards.Guard(app, hosts, token)
